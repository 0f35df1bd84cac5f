"""The page for operators names every setting, with its default, its variable and its meaning."""

from typing import Any

from pages import GUIDE, cells, section

from headrace.runtime.model.size import show_size
from headrace.runtime.settings import Settings, describe, known_settings


def default_of(name: str) -> str:
    if name == "workers":
        return "one per core"
    if name == "tokens":
        return "the one in `DATA/token`"
    value = dict(Settings().items())[name]
    if name in ("store", "objects"):
        return f"`DATA/{str(value).rpartition('/')[2]}`"
    return f"`{shown(name, value)}`"


def shown(name: str, value: Any) -> str:
    """A default as people write it in headrace.toml."""
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if "bytes" in name:
        whole = show_size(value)
        return whole.replace(".0 ", " ")
    if name.endswith("_s"):
        for unit, seconds in (("d", 86_400), ("h", 3600), ("min", 60)):
            if value >= 2 * seconds and value % seconds == 0 and (unit != "d" or value >= 3 * seconds):
                return f"{value / seconds:g} {unit}"
        return f"{value:g} s"
    return f"{value:,}" if isinstance(value, int) and name != "port" else str(value)


def settings_table() -> list[list[str]]:
    return [
        [f"`{name}`", f"`HEADRACE_{name.upper().replace('.', '_')}`", default_of(name), describe(name)]
        for name in known_settings()
    ]


def test_every_setting_is_documented_as_it_is() -> None:
    expected = settings_table()
    text = section((GUIDE / "operations.md").read_text(encoding="utf-8"), "## Settings")
    found = [row for row in cells(text) if row[0].startswith("`")]

    assert found == expected, "the table should be:\n" + "\n".join(
        f"| {' | '.join(row)} |" for row in expected
    )
