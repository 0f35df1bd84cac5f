"""`headrace doctor` and `headrace config` where the store is a PostgreSQL database."""

import json
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from postgres_server import KEEPER, PostgresServer

from headrace.runtime.cli.command import run

NOWHERE = "http://127.0.0.1:1"

Checks = Callable[[str], dict[str, dict[str, str]]]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Checks:
    def ask(url: str) -> dict[str, dict[str, str]]:
        monkeypatch.setenv("HEADRACE_STORE", url)
        run(["doctor", "--json", "--url", NOWHERE])
        shown = capsys.readouterr().out
        assert "unused" not in shown
        assert "wrong-one" not in shown
        return {check["name"]: check for check in json.loads(shown)["checks"]}

    return ask


def test_doctor_says_how_the_server_is_doing_and_leaves_nothing_behind(
    checks: Checks, postgres_url: str
) -> None:
    found = checks(postgres_url)

    for name in ("postgresql", "tables", "durable commit", "postgresql synchronous_commit", "connections"):
        assert found[name]["status"] in ("ok", "warn"), found[name]
    assert "none yet" in found["tables"]["found"]
    with psycopg.connect(postgres_url) as db:
        assert db.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_doctor_warns_where_the_server_was_told_to_lose_commits(checks: Checks, postgres_url: str) -> None:
    name = postgres_url.rsplit("/", 1)[1]
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")

    assert checks(postgres_url)["postgresql synchronous_commit"]["status"] == "warn"


def test_doctor_finds_the_tables_of_another_program(checks: Checks, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("CREATE TABLE meta (colour text)")

    assert (checks(postgres_url)["tables"]["status"]) == "fail"


def test_doctor_says_why_a_server_cannot_be_asked(checks: Checks, postgres_server: PostgresServer) -> None:
    for url, said in (
        (postgres_server.url("nowhere"), "there is no such database"),
        (
            postgres_server.url("postgres", user=KEEPER, password="wrong-one"),
            "refuses this user and password",
        ),
        ("postgresql://me:unused@127.0.0.1:1/x", "no PostgreSQL server answers there"),
    ):
        found = checks(url)["postgresql"]
        assert found["status"] == "fail", url
        assert said in found["found"], url
        assert found["hint"], url


def test_config_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_STORE", "postgresql://me:s3cret@127.0.0.1:1/x")

    for arguments in (["config"], ["config", "--json"]):
        assert run(arguments) == 0
        shown = capsys.readouterr().out
        assert "postgresql://me:***@127.0.0.1:1/x" in shown
        assert "s3cret" not in shown
