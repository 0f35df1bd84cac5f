"""The guide's own trigger: it is what the page shows, is installed by pip, and loses and doubles nothing."""

import asyncio
import importlib.util
import re
import signal
import sqlite3
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import GUIDE, blocks

from headrace.runtime import trigger as protocol
from headrace.runtime.errors import InvalidFunction, StorageFull
from headrace.runtime.testing import ManualClock
from headrace.runtime.trigger import TriggerContext
from tests.serving import ROOT, Serving, wait_until
from tests.triggers.trigger_bench import DEADLINE_S, Engine

EXAMPLE = ROOT / "docs" / "examples" / "table-trigger"
MODULE = EXAMPLE / "headrace_table_trigger.py"
CODE = """
from headrace import App, Items
from headrace_table_trigger import Table

app = App("shop")


@app.on(Table("{database}", "orders", every=0.05, existing="run"))
@app.function(retries=5)
def order(table: str, row: dict) -> int:
    return row["id"]


@app.on(Table("{database}", "orders", every=0.05, existing="run"))
@app.job(split=Items(), reduce=lambda a, b: a + b)
def batch(chunk) -> int:
    return sum(item["row"]["id"] for item in chunk.records())
"""


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("headrace_table_trigger", MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path, ManualClock())
    await engine.store.start()
    yield engine
    await engine.store.stop()


@pytest.fixture
def orders(tmp_path: Path) -> Path:
    path = tmp_path / "orders.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, what TEXT)")
    db.close()
    return path


def add(path: Path, count: int) -> None:
    with sqlite3.connect(path) as db:
        db.executemany("INSERT INTO orders (what) VALUES (?)", [("tea",)] * count)
    db.close()


def ids(engine: Engine) -> list[int]:
    return [event["row"]["id"] for event in engine.events]


def test_the_page_shows_the_example_as_it_is() -> None:
    page = (GUIDE / "custom-triggers.md").read_text(encoding="utf-8")

    assert MODULE.read_text(encoding="utf-8") in blocks(page, "py")
    assert (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8") in blocks(page, "toml")


def test_the_page_names_all_that_a_source_gets_and_all_that_a_trigger_may_be() -> None:
    page = (GUIDE / "custom-triggers.md").read_text(encoding="utf-8")
    optional = [name for name, kind in vars(protocol).items() if getattr(kind, "_is_runtime_protocol", False)]

    assert optional
    missing = [n for n in (*TriggerContext.__struct_fields__, *optional) if not re.search(rf"`{n}\b", page)]
    assert missing == []


def test_the_example_uses_the_protocol_and_the_floor_only() -> None:
    lines = [line for line in MODULE.read_text(encoding="utf-8").splitlines() if "headrace." in line]
    rooms = {line.split()[1] for line in lines if line.startswith("from ")}

    assert rooms == {"headrace.runtime.errors", "headrace.runtime.model.write", "headrace.runtime.trigger"}


def test_the_entry_point_bears_the_name_of_the_kind(example: ModuleType) -> None:
    found = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))

    assert found["project"]["entry-points"]["headrace.triggers"] == {
        example.Table.kind: "headrace_table_trigger:Table"
    }


def test_a_wrong_declaration_is_refused(example: ModuleType) -> None:
    for arguments in ({"table": "a; b"}, {"column": "1"}, {"every": 0}, {"existing": "maybe"}):
        with pytest.raises(InvalidFunction):
            example.Table("o.db", **{"table": "orders", **arguments})
    table = example.Table("o.db", "orders", every=2)
    assert example.Table.from_fields(table.fields()).fields() == table.fields()


async def test_each_row_is_brought_once_in_order(example: ModuleType, engine: Engine, orders: Path) -> None:
    add(orders, 250)
    source = example.Table(str(orders), "orders", existing="run").source(engine.context("shop.order/table/0"))
    while await source.step():
        pass
    add(orders, 3)
    assert not await source.step()
    assert not await source.step()

    assert ids(engine) == list(range(1, 254))


async def test_rows_from_before_the_trigger_are_passed_over(
    example: ModuleType, engine: Engine, orders: Path
) -> None:
    add(orders, 5)
    source = example.Table(str(orders), "orders").source(engine.context("shop.order/table/0"))
    assert await source.step()
    add(orders, 2)
    await source.step()

    assert ids(engine) == [6, 7]


async def test_a_row_that_cannot_be_accepted_is_offered_again(
    example: ModuleType, engine: Engine, orders: Path
) -> None:
    add(orders, 2)
    source = example.Table(str(orders), "orders", existing="run").source(engine.context("shop.order/table/0"))
    engine.refuse.append(StorageFull("the disk"))
    with pytest.raises(StorageFull):
        await source.step()
    await source.step()

    assert ids(engine) == [1, 2]


async def test_two_sources_of_one_table_bring_each_row_once(
    example: ModuleType, engine: Engine, orders: Path
) -> None:
    sources = [
        example.Table(str(orders), "orders", existing="run").source(engine.context("shop.order/table/0"))
        for _ in range(2)
    ]
    for source in sources:
        await source.start()
    clock: Any = engine.clock
    for number in range(1, 6):
        add(orders, 30)
        async with asyncio.timeout(DEADLINE_S):
            while len(engine.events) < 30 * number:
                await clock.advance(1)
                await asyncio.sleep(0.005)
    for source in sources:
        await source.stop()

    assert ids(engine) == list(range(1, 151))


def test_the_example_is_installed_by_pip_and_survives_kills(tmp_path: Path, orders: Path) -> None:
    installed = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation",
         "--disable-pip-version-check", "--target", str(installed), str(copy_of_example(tmp_path))],
        check=True, timeout=120,
    )  # fmt: skip
    code = tmp_path / "shop.py"
    code.write_text(CODE.format(database=orders), encoding="utf-8")
    env = {"PYTHONPATH": f"{ROOT}:{installed}", "HEADRACE_FAULT_ONCE": str(tmp_path / "struck")}
    node = Serving(code, folder=tmp_path, workers=1, env={**env, "HEADRACE_FAULT": "commit.after:12"})
    rows = 0

    def grow(count: int) -> None:
        nonlocal rows
        add(orders, count)
        rows += count

    def died() -> bool:
        grow(1)
        return not node.alive

    grow(20)
    try:
        node.launch()
        wait_until(died, "the node to die", within_s=60)
        assert node.wait_ended(60) == -signal.SIGKILL
        node.start()
        grow(20)
        wait_until(lambda: is_brought(node, rows), "the end of all rows", within_s=60)
        found = Counter(one["result"] for one in node.client.invocations(function="shop.order"))
        sums = sum(job["result"] for job in node.client.jobs())
    finally:
        node.close()
    assert found == Counter(range(1, rows + 1))
    assert sums == sum(range(1, rows + 1))


def is_brought(node: Serving, rows: int) -> bool:
    """Whether there is one invocation and one job for each row, and all have ended."""
    functions = node.check_books()["functions"]
    ended = [job for job in node.client.jobs() if job["status"] == "succeeded"]
    return functions["shop.order"]["succeeded"] == rows and len(ended) == rows


def copy_of_example(tmp_path: Path) -> Path:
    """The example's files elsewhere, since building leaves things beside them."""
    copy = tmp_path / "example"
    copy.mkdir()
    for file in (MODULE, EXAMPLE / "pyproject.toml"):
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
