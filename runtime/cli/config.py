"""`headrace config`: the settings that a node started here would have, and where each came from."""

from headrace.runtime.cli.options import AsJson, Config
from headrace.runtime.cli.output import show_json, show_table


def config(config: Config = None, as_json: AsJson = False) -> None:
    """Show each setting and where its value came from.

    The order is: default, headrace.toml, HEADRACE_* variables, options of `headrace serve`; the last one
    wins.
    """
    from headrace.runtime.settings import describe, load_settings

    settings = load_settings(config=config)
    shown = [(name, _plain(value), settings.source_of(name)) for name, value in settings.items()]
    if as_json:
        show_json(
            {"settings": [{"name": n, "value": v, "source": s, "about": describe(n)} for n, v, s in shown]}
        )
        return
    rows = [[name, _text(value), source, describe(name)] for name, value, source in shown]
    show_table(["SETTING", "VALUE", "FROM", "ABOUT"], rows, empty="")


def _plain(value: object) -> object:
    """The value as JSON has it; a token as its name and scopes."""
    from headrace.runtime.settings import Token

    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Token):
        return {"name": value.name, "scopes": sorted(value.scopes)}
    return value if isinstance(value, str | int | float | bool) else str(value)


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(
            item if isinstance(item, str) else f"{item['name']}:{'+'.join(item['scopes'])}" for item in value
        )
    return f"{value:g}" if isinstance(value, float) else str(value)
