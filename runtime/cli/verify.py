"""`headrace verify`: whether the books balance, every row is whole and every object is there.

Of a node that runs it asks the node; of data that no node holds it reads the data itself, under its lock.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.runtime.cli.options import AsJson, Config, Function, Token, Url, connect
from headrace.runtime.cli.output import show_json, show_table

PARTS = ("waiting", "running", "succeeded", "dead", "cancelled")
_COLUMNS = ("accepted", *PARTS, "removed", "missing")

WithObjects = Annotated[
    bool, typer.Option("--objects/--no-objects", help="Also ask for every object that a row names.")
]
Most = Annotated[int, typer.Option("--limit", min=1, max=10_000, help="The most to name of each kind.")]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DATA", help="Read this data folder itself, which no node may hold."),
]


def verify(
    as_json: AsJson = False,
    objects: WithObjects = True,
    function: Function = None,
    limit: Most = 100,
    data: Data = None,
    config: Config = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Check that nothing accepted is unaccounted for, and name every row that breaks a rule.

    Synchronous calls have no row in the store and counters of their own. Exit code 1 when anything is wrong.
    """
    if data is not None:
        if url is not None:
            raise typer.BadParameter("--data reads the data without a node: leave out --url")
        verdict = _offline(data, config, objects=objects, function=function, limit=limit)
    else:
        with connect(url, token) as client:
            verdict = client.verify(objects=objects, function=function, limit=limit)
    if as_json:
        show_json(verdict)
    else:
        _show(verdict)
        if function is not None and not verdict["functions"]:
            print(f"Nothing of {function} was ever accepted; `headrace functions` lists what is loaded.")
    if not verdict["balanced"]:
        raise typer.Exit(1)


def _offline(
    data: Path, config: Path | None, *, objects: bool, function: str | None, limit: int
) -> dict[str, Any]:
    import asyncio

    from headrace.runtime.clock import SystemClock
    from headrace.runtime.errors import InvalidSettings
    from headrace.runtime.objects.url import open_store
    from headrace.runtime.settings import load_settings
    from headrace.runtime.store.offline import OfflineStore
    from headrace.runtime.store.verify import Verifier

    settings = load_settings({"data": data}, config=config)
    if "://" in settings.store:
        raise InvalidSettings(
            f"{settings.store.partition('://')[0]}:// is no file in a data folder",
            "Ask a running node: leave out --data.",
        )

    async def run() -> dict[str, Any]:
        store = OfflineStore(Path(settings.store))
        await store.start()
        try:
            held = open_store(settings.objects)
            verifier = Verifier(store, held, clock=SystemClock(), in_thread=asyncio.to_thread)
            verdict = await verifier.verify(function=function, objects=objects, limit=limit)
        finally:
            await store.stop()
        return verdict.document()

    return asyncio.run(run())


def _show(verdict: dict[str, Any]) -> None:
    books = [("total", verdict["total"]), *verdict["functions"].items()]
    headings = [column.upper() for column in _COLUMNS]
    show_table(
        ["FUNCTION", *headings],
        [[name, *(_cell(book, column) for column in _COLUMNS)] for name, book in books],
        empty="",
        right=headings,
    )
    for problem in verdict["problems"]:
        row = " ".join(part for part in (problem["function"], problem["id"]) if part)
        print(f"{problem['check']}: {row}: {problem['message']}. {problem['hint']}")
    unnamed = sum(verdict["found"].values()) - len(verdict["problems"])
    if unnamed > 0:
        print(f"… and {unnamed:,} more; --limit names more of each kind.")
    found = verdict["objects"]
    if found is not None:
        print(
            f"{found['checked']:,} objects are named by rows, {found['missing']:,} of them are missing;"
            f" {found['unreferenced']:,} ({found['unreferenced_bytes']:,} bytes) have no row and are removed"
            " within the hour by a running node."
            if found["unreferenced"]
            else f"{found['checked']:,} objects are named by rows, {found['missing']:,} of them are missing."
        )
        if found["gone"]:
            print(f"{found['gone']:,} results in buckets of yours have been removed.")
    print(f"{verdict['checked_rows']:,} rows were read in {verdict['seconds']:.1f} s.")
    print("The books balance." if verdict["balanced"] else "The books do not balance: " + _kinds(verdict))


def _cell(book: dict[str, Any], column: str) -> int:
    value = book[column]
    return sum(value.values()) if isinstance(value, dict) else int(value)


def _kinds(verdict: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} {check}" for check, count in sorted(verdict["found"].items())) + "."
