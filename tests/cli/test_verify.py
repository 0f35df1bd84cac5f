"""`headrace verify` on a real node, and on the data of one that was killed."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace.runtime.model.ids import read_id
from tests.serving import Serving, run_command, serving

CODE = """
from headrace import App, Items

app = App("shop")

@app.function
def echo(event):
    return event

@app.function(retries=0)
def fail(event):
    raise ValueError("no")

@app.function(reserved_concurrency=0)
def never(event):
    return None

@app.job(split=Items(batch=1), reduce=lambda a, b: a + b)
def total(chunk):
    return sum(chunk.items)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("verify")
    (found / "shop.py").write_text(CODE)
    return found


@pytest.fixture(scope="module")
def node(folder: Path) -> Iterator[Serving]:
    with serving(folder / "shop.py", folder=folder, workers=1) as found:
        fill(found)
        yield found


def fill(node: Serving) -> None:
    """Some of everything: a large payload, a dead one, one that waits, a job."""
    client = node.client
    large = "x" * 300_000
    done = [client.submit("shop.echo", payload) for payload in (1, 2, large)]
    assert [future.result(timeout=20) for future in done] == [1, 2, large]
    failed = client.submit("shop.fail", 1)
    assert failed.exception(timeout=20) is not None
    client.submit("shop.never", 1).wait_accepted(20)
    job = client.submit_job("shop.total", [1, 2, 3])
    assert job.result(20) == 6


def verify(node: Serving, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = run_command("verify", "--json", *arguments, env={"HEADRACE_DATA": str(node.data)})
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_node_that_runs_balances(node: Serving) -> None:
    code, verdict = verify(node)

    assert (code, verdict["balanced"], verdict["problems"], verdict["found"]) == (0, True, [], {})
    assert verdict["functions"]["shop.echo"]["rows"]["succeeded"] == 3
    assert (verdict["functions"]["shop.fail"]["dead"], verdict["functions"]["shop.never"]["waiting"]) == (
        1,
        1,
    )
    assert verdict["total"]["missing"] == 0
    assert verdict["objects"]["checked"] >= 1
    assert verdict["objects"]["missing"] == 0
    assert node.client.verify(function="shop.echo")["checked_rows"] == 3


def test_people_get_a_table_and_a_verdict(node: Serving) -> None:
    done = run_command("verify", "--no-objects", env={"HEADRACE_DATA": str(node.data)})

    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["FUNCTION", "ACCEPTED", "WAITING"]
    assert lines[-1] == "The books balance."


def test_the_metrics_have_the_last_verdict(node: Serving) -> None:
    node.client.verify()
    text = node.client.backend.request("GET", "/metrics").body.decode()

    assert "headrace_books_balanced 1.0" in text
    assert "headrace_books_checked_timestamp_seconds " in text
    assert 'headrace_invocations_removed_total{function="shop.echo",status="succeeded"} 0.0' in text


def test_data_that_a_node_holds_is_left_to_it(node: Serving) -> None:
    done = run_command("verify", "--data", node.data)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is held by process" in done.stderr
    assert run_command("verify", "--data", node.data, "--url", "http://x").returncode == 2


class Damaged:
    """The data of a node that was killed, to be changed by hand and looked at offline."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def ask(self, sql: str, *values: object) -> list[Any]:
        with sqlite3.connect(self.data / "headrace.db") as db:
            found = db.execute(sql, values).fetchall()
        db.close()
        return found

    def problems(self) -> list[tuple[str, str | None, str | None]]:
        done = run_command("verify", "--json", "--data", self.data)
        assert done.stdout, done.stderr
        verdict = json.loads(done.stdout)
        assert (done.returncode, verdict["balanced"]) == (
            (0, True) if not verdict["problems"] else (1, False)
        )
        return [(each["check"], each["function"], each["id"]) for each in verdict["problems"]]


def test_damage_by_hand_is_named_row_by_row(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(CODE)
    with serving(tmp_path / "shop.py", folder=tmp_path, workers=1) as node:
        fill(node)
        node.client.submit("shop.never", 2).wait_accepted(20)
        node.kill()
    here = Damaged(node.data)
    assert here.problems() == []

    [[small]] = here.ask("SELECT min(id) FROM invocation WHERE function = 'shop.echo'")
    here.ask("UPDATE invocation SET status = 0 WHERE id = ?", small)
    found = here.problems()
    assert {(check, id and read_id(id)) for check, _, id in found} >= {
        ("unended_with_moment", small),
        ("unended_with_result", small),
    }
    done = run_command("verify", "--data", node.data)
    assert done.returncode == 1
    assert f"unended_with_moment: shop.echo {small:016x}: it waits or runs" in done.stdout
    assert f"`headrace invocations show {small:016x}`" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("The books do not balance: ")
    here.ask("UPDATE invocation SET status = 2 WHERE id = ?", small)
    assert here.problems() == []

    here.ask("UPDATE invocation SET function = 'shop.fail' WHERE id = ?", small)
    assert ("flow", "shop.fail", f"{small:016x}") in here.problems()
    here.ask("UPDATE invocation SET function = 'shop.echo' WHERE id = ?", small)

    [[large, ref]] = here.ask("SELECT id, payload_ref FROM invocation WHERE payload_ref IS NOT NULL")
    object_file = node.data / "buckets" / ref.removeprefix("s3://")
    kept = object_file.read_bytes()
    object_file.unlink()
    assert here.problems() == [("object", "shop.echo", f"{large:016x}")]
    object_file.write_bytes(kept)

    [[job, part]] = here.ask("SELECT job, id FROM invocation WHERE job IS NOT NULL AND stage = 0 AND idx = 1")
    here.ask("DROP INDEX part")
    here.ask("UPDATE invocation SET idx = 0 WHERE id = ?", part)
    assert here.problems() == [("job_part_twice", "shop.total", f"{job:016x}")]
    here.ask("UPDATE invocation SET idx = 1 WHERE id = ?", part)

    here.ask("DELETE FROM invocation WHERE function = 'shop.never'")
    done = run_command("verify", "--json", "--data", node.data)
    assert done.returncode == 1
    verdict = json.loads(done.stdout)
    assert [(each["function"], each["message"][-9:]) for each in verdict["problems"]] == [
        ("shop.never", "2 missing")
    ]
    assert verdict["functions"]["shop.never"]["missing"] == 2


def test_where_there_is_no_data_it_is_said(tmp_path: Path) -> None:
    done = run_command("verify", "--data", tmp_path / "none")

    assert done.returncode == 1
    assert "there is no database at" in done.stderr
    assert not (tmp_path / "none").exists()
