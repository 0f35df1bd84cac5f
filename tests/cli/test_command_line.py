"""The command line without a node: what starts it, what it refuses, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtime.cli.command import COMMANDS, run

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def modules_after(*arguments: str) -> set[str]:
    """What a fresh interpreter has loaded after running the command."""
    script = (
        "import json, sys\nfrom headrace.runtime.cli.command import run\n"
        f"run({list(arguments)!r})\nprint(json.dumps(list(sys.modules)), file=sys.__stdout__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_help_lists_every_command_and_loads_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0

    shown = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in shown] == []
    loaded = modules_after("--help")
    assert not {"rich", "pydantic", "urllib3", "msgspec", "asyncio", "sqlalchemy"} & loaded


def test_invoke_loads_no_more_than_one_call_needs() -> None:
    loaded = modules_after("invoke", "a.b", "--url", NOWHERE)

    assert (
        not {"rich", "pydantic", "pydantic_settings", "msgspec", "asyncio", "cloudpickle", "sqlalchemy"}
        & loaded
    )


@pytest.mark.parametrize("command", [*COMMANDS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    assert f"Usage: headrace {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["functions"],
        ["invoke", "a.b"],
        ["invocations", "list"],
        ["job", "show", "1"],
        ["dead-letters", "list"],
        ["logs"],
        ["buckets", "list"],
        ["objects", "list", "s3://b"],
        ["verify"],
    ],
)
def test_without_a_node_a_command_says_how_to_start_one(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*arguments, "--url", NOWHERE]) == 1

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"error: no node answers at {NOWHERE}: the connection was refused. ")
    assert "headrace serve" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["invoke"], 2, "Missing argument"),
        (["invoke", "a.b", "--timeout", "soon"], 2, "--timeout"),
        (["serve", "--port", "99999"], 2, "--port"),
        (["dead-letters", "redrive"], 2, "either an ID or --function"),
        (["dead-letters", "redrive", "--tag", "x", "--edit"], 2, "--payload and --edit take one ID"),
        (["invocations", "cancel"], 2, "give either IDs, or --function, --tag or --job"),
        (["invocations", "cancel", "1", "--tag", "x"], 2, "give either IDs"),
        (["logs", "1", "--follow"], 2, "neither --follow nor --function"),
        (["invoke", "a.b", "--payload", "{"], 1, "the payload is not valid JSON"),
        (["invoke", "a.b", "--payload", "NaN"], 1, "NaN is not JSON"),
        (["invoke", "a.b", "--payload", "@missing.json"], 1, "missing.json cannot be read"),
        (["objects", "get", "photos/a"], 1, "'photos/a' names no object"),
        (["objects", "put", "missing.txt", "s3://b/k"], 1, "missing.txt: No such file or directory"),
        (["invoke", "a.b", "--url", "127.0.0.1:80"], 1, "is no address of a node"),
        (["serve", "--host", "0.0.0.0"], 1, "no tokens are configured"),
        (["config", "--config", "missing.toml"], 1, "missing.toml cannot be read"),
    ],
)
def test_every_error_is_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == code

    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert "Traceback" not in shown.err


def test_config_shows_values_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    Path("headrace.toml").write_text('port = 9000\ntokens = ["ci:invoke:topsecret"]\n', encoding="utf-8")

    assert run(["config"]) == 0
    table = capsys.readouterr().out
    assert run(["config", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)

    assert "topsecret" not in table + json.dumps(document)
    [port] = [entry for entry in document["settings"] if entry["name"] == "port"]
    assert (port["value"], port["source"]) == (9000, "headrace.toml:1")
    [line] = [line for line in table.splitlines() if line.startswith("port ")]
    assert "9000" in line
    assert "headrace.toml:1" in line


def test_doctor_passes_here_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    run(["doctor", "--json", "--url", NOWHERE])
    document = json.loads(capsys.readouterr().out)

    found = {check["name"]: check["status"] for check in document["checks"]}
    assert found["python"] == found["fork"] == found["data folder"] == "ok"
    assert found["node"] == "warn"
    assert document["ok"] == ("fail" not in found.values())
    assert list(Path().iterdir()) == []


def test_doctor_fails_when_the_data_folder_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data").write_text("a file", encoding="utf-8")

    assert run(["doctor", "--url", NOWHERE]) == 1
    assert "cannot be written" in capsys.readouterr().out


def test_doctor_names_the_package_that_a_setting_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import headrace.runtime.cli.doctor as doctor

    def version(name: str) -> str:
        if name == "psycopg":
            raise doctor.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setenv("HEADRACE_STORE", "postgresql://db/x")

    assert run(["doctor", "--url", NOWHERE]) == 1
    assert "headrace[postgres]" in capsys.readouterr().out


def test_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("headrace ")


def test_an_error_of_ours_is_one_line_with_the_trace_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise LookupError("lost")

    monkeypatch.setattr("headrace.runtime.client.client.Client.verify", broken)

    assert run(["verify"]) == 1
    assert capsys.readouterr().err.startswith("error: LookupError: lost. This is a bug in headrace")
    monkeypatch.setenv("HEADRACE_DEBUG", "1")
    assert run(["verify"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "headrace", "config"],
        stdout=write,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        timeout=60,
    )
    os.close(write)

    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_ends_a_command_with_130_and_no_trace(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the call and never answers
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "headrace", "invoke", "a.b", "--url", url],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        connection, _ = server.accept()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        connection.close()

    assert process.returncode == 130
    assert b"Traceback" not in said
