"""What users get wrong: one line that says what happened and what to do, and nothing is lost."""

import json
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from headrace.runtime.errors import (
    HeadraceError,
    InvalidKey,
    InvalidPayload,
    NoSuchBucket,
    NoSuchObject,
    PayloadTooLarge,
    UnknownFunction,
)
from tests.serving import Serving, run_command, serving

CODE = Path(__file__).with_name("plain_functions.py")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(CODE, folder=tmp_path_factory.mktemp("plain")) as found:
        yield found


def check_refusal(ended: Any, *words: str, code: int = 1) -> None:
    """One line on stderr that holds `words`, no stack, and the exit code."""
    assert ended.returncode == code, ended
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    for word in words:
        assert word in lines[0], lines[0]
    assert "Traceback" not in ended.stderr
    assert "bug in headrace" not in ended.stderr


# ---- at the start ----


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = run_command("serve", CODE, "--port", port, "--data", tmp_path / "data")
    check_refusal(ended, port, "--port")


def test_a_data_folder_that_another_node_holds_is_refused_and_that_node_goes_on(node: Serving) -> None:
    ended = run_command("serve", CODE, "--port", "0", "--data", node.data)
    check_refusal(ended, str(node.data), str(node.pid))
    assert (node.data / "node.json").exists()
    assert node.client.invoke("plain.double", {"n": 4}) == 8


def test_a_file_where_the_data_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    check_refusal(run_command("serve", CODE, "--port", "0", "--data", tmp_path / "data"), "data", "--data")
    check_refusal(run_command("serve", CODE, "--port", "0", "--data", tmp_path / "data" / "below"), "below")
    assert (tmp_path / "data").read_text() == "mine"


def test_a_data_folder_that_cannot_be_written_is_refused() -> None:
    check_refusal(
        run_command("serve", CODE, "--port", "0", "--data", "/proc/self/headrace"), "/proc/self/headrace"
    )


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        node.client.submit("plain.double", {"n": 1}).result(20)
        assert node.stop() == 0
    database = tmp_path / "data" / "headrace.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE meta SET value = '999' WHERE key = 'min_reader'")
    before = database.read_bytes()
    check_refusal(run_command("serve", CODE, "--port", "0", "--data", tmp_path / "data"), "newer")
    assert database.read_bytes() == before


def test_a_database_that_is_none_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "headrace.db").write_bytes(b"these are my notes\n" * 500)
    check_refusal(run_command("serve", CODE, "--port", "0", "--data", tmp_path / "data"), "headrace.db")
    assert (tmp_path / "data" / "headrace.db").read_bytes().startswith(b"these are my notes")


@pytest.mark.parametrize(
    ("arguments", "env", "words", "code"),
    [
        ((), {"HEADRACE_WORKRES": "3"}, ["HEADRACE_WORKRES", "HEADRACE_WORKERS"], 1),
        ((), {"HEADRACE_WORKERS": "many"}, ["workers", "many"], 1),
        (("--host", "0.0.0.0"), {}, ["0.0.0.0", "tokens"], 1),
        (("--host", "203.0.113.7"), {"HEADRACE_TOKENS": "ci:read:secret"}, ["203.0.113.7"], 1),
        (("--wrokers", "2"), {}, ["--wrokers", "--workers"], 2),
        (("--workers", "0"), {}, ["--workers"], 2),
        (("--store", "mongo://somewhere"), {}, ["mongo://"], 1),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_would_be_right(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], words: list[str], code: int
) -> None:
    ended = run_command("serve", CODE, "--port", "0", "--data", tmp_path / "data", *arguments, env=env)
    check_refusal(ended, *words, code=code)


def test_an_unknown_key_in_the_settings_file_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "headrace.toml").write_text('port = 0\n\ndrain = "3 s"\n')
    ended = run_command("serve", CODE, "--data", tmp_path / "data", cwd=tmp_path)
    check_refusal(ended, "headrace.toml:3", "drain_s")


def test_a_file_of_functions_that_is_not_there_is_refused(tmp_path: Path) -> None:
    ended = run_command("serve", tmp_path / "nothing.py", "--port", "0", "--data", tmp_path / "data")
    check_refusal(ended, "nothing.py")


# ---- code ----

GOOD = "from headrace import App\napp = App('good')\n@app.function\ndef three() -> int:\n    return 3\n"


@pytest.mark.parametrize(
    ("name", "text", "place", "words"),
    [
        ("spelt.py", "from headrace import App\n\ndef wrong(:\n    pass\n", "spelt.py:3", "invalid syntax"),
        ("absent.py", "import headrace\nimport no_such_module\n", "absent.py:2", "no_such_module"),
        ("raises.py", "x = 1\nraise RuntimeError('no licence')\n", "raises.py:2", "no licence"),
        (
            "twice.py",
            GOOD.replace("return 3", "return 33"),
            "twice.py",
            "good",
        ),
        (
            "setting.py",
            "from headrace import App\napp = App('s')\n\n@app.function(timeuot=3)\ndef f() -> None: ...\n",
            "setting.py:4",
            "timeuot",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_the_others_are_served(
    tmp_path: Path, name: str, text: str, place: str, words: str
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "a_good.py").write_text(GOOD)
    (code / name).write_text(text)
    with serving(code, folder=tmp_path) as node:
        assert node.client.invoke("good.three") == 3
        [fault] = node.client.loaded()["errors"]
        assert place in f"{fault['file']}:{fault['line']}"
        assert words in f"{fault['message']} {fault['hint']}"
        assert place in node.words()
        assert "Traceback" not in node.words()


# ---- calls ----


def test_an_unknown_function_is_answered_with_the_nearest_name(node: Serving) -> None:
    with pytest.raises(UnknownFunction, match=r"plain\.duoble") as refused:
        node.client.invoke("plain.duoble", {"n": 1})
    assert "plain.double" in f"{refused.value} {refused.value.hint}"
    with pytest.raises(UnknownFunction):
        node.client.submit("plain.duoble", {"n": 1}).result(20)
    ended = run_command("invoke", "plain.duoble", env={"HEADRACE_DATA": str(node.data)})
    check_refusal(ended, "plain.duoble", "plain.double")


def test_a_payload_that_is_no_json_is_refused_by_the_api_and_the_command(node: Serving) -> None:
    answer = node.client.backend.request(
        "POST",
        "/v1/functions/plain.double/invoke",
        body=b'{"n": NaN}',
        headers={"Content-Type": "application/json"},
    )
    assert answer.status == 400
    assert b"invalid_payload" in answer.body
    for text in ("{n: 1}", "@/no/such/file", '{"n": NaN}'):
        ended = run_command(
            "invoke", "plain.double", "--payload", text, env={"HEADRACE_DATA": str(node.data)}
        )
        check_refusal(ended)


def test_a_body_that_is_too_large_is_refused_before_it_is_accepted(node: Serving) -> None:
    before = node.client.stats()["total"]["accepted"]
    headers = {"Content-Type": "application/json"}
    path = "/v1/functions/plain.double/invoke"
    big = b'"' + b"x" * (1 << 20) + b'"'
    assert (
        node.client.backend.request("POST", path, query={"mode": "async"}, body=big, headers=headers).status
        == 413
    )
    assert node.client.backend.request("POST", path, body=big * 6, headers=headers).status == 413
    with pytest.raises(PayloadTooLarge):
        node.client.submit("plain.double", "x" * (1 << 20)).result(20)
    assert node.client.stats()["total"]["accepted"] == before


def test_a_large_payload_below_the_limit_arrives_whole(node: Serving) -> None:
    order = {"product": "p" * 900_000, "count": 2}
    assert node.client.submit("plain.order", order).result(20) == f"2 x {order['product']}"
    ids = node.client.call("POST", "/v1/functions/plain.order/invoke-many", body=[order, order])[
        "invocation_ids"
    ]
    assert [node.client.invocation(id, wait_s=20)["status"] for id in ids] == ["succeeded"] * 2


@pytest.mark.parametrize("key", ["..", "../other/x", "a/../../x", "a//b", ".", "a/./b", "x" * 1100])
def test_a_key_with_dots_and_slashes_never_leaves_its_bucket(node: Serving, key: str) -> None:
    def files() -> set[Path]:
        return {place for place in node.data.rglob("*") if place.is_file() and ".tmp" not in place.parts}

    node.client.make_bucket("keys")
    before = files()
    path = f"/v1/objects/keys/{quote(key, safe='').replace('.', '%2E')}"
    answer = node.client.backend.request("PUT", path, body=b"data", headers={"Content-Type": "text/plain"})
    stored = [place.resolve() for place in files() - before if "logs" not in place.parts]

    if answer.status == 201:
        assert all((node.data / "buckets" / "keys").resolve() in place.parents for place in stored), stored
        assert node.client.backend.request("GET", path).body == b"data"
        assert node.client.backend.request("DELETE", path).status == 204
    else:
        assert answer.status == 400
        assert b"invalid_key" in answer.body
        assert stored == []
    assert not (node.data / "buckets" / "other").exists()


def test_objects_and_buckets_that_are_not_there_are_named(node: Serving) -> None:
    with pytest.raises(NoSuchBucket, match="nowhere"):
        node.client.get_object("s3://nowhere/a.csv")
    with pytest.raises(NoSuchBucket, match="nowhere"):
        node.client.put_object("s3://nowhere/a.csv", b"")
    node.client.make_bucket("somewhere")
    with pytest.raises(NoSuchObject, match="somewhere/a"):
        node.client.get_object("s3://somewhere/a.csv")


def test_a_job_over_a_missing_input_is_refused_before_it_is_accepted(tmp_path: Path) -> None:
    code = Path(__file__).with_name("file_jobs.py")
    with serving(code, folder=tmp_path) as node:
        node.client.make_bucket("store")
        with pytest.raises(NoSuchObject, match="store/absent"):
            node.client.submit_job("files.listed", "s3://store/absent.csv")
        with pytest.raises(NoSuchBucket, match="nowhere"):
            node.client.submit_job("files.listed", "s3://nowhere/absent.csv")
        for wrong in (5, [1, 2], "not-a-url"):
            with pytest.raises(HeadraceError) as refused:
                node.client.submit_job("files.listed", wrong)
            assert refused.value.http_status == 400, refused.value
        assert list(node.client.jobs()) == []
        env = {"HEADRACE_DATA": str(node.data)}
        check_refusal(
            run_command("job", "submit", "files.listed", "--input", "s3://store/absent.csv", env=env),
            "absent.csv",
        )


def test_an_event_that_does_not_fit_its_type_is_refused_at_once_or_dead_at_once(node: Serving) -> None:
    wrong = {"product": "", "count": 1000}
    answer = node.client.backend.request(
        "POST", "/v1/functions/plain.order/invoke", body=b'{"product": "", "count": 1000}',
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    assert answer.status == 422
    for name in (b"invalid_event", b"product", b"count"):
        assert name in answer.body

    path = "/v1/functions/plain.order/invoke"
    id = node.client.call("POST", path, query={"mode": "async"}, body=wrong)["invocation_id"]
    end = node.client.invocation(id, wait_s=20)
    assert (end["status"], end["attempts"], end["error"]["code"]) == ("dead", 1, "invalid_event")
    assert re.search("product|count", str(end["error"]["fields"]))


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v1/functions/plain.double/invoke?mode=soon", b"{}", 400),
        ("POST", "/v1/functions/plain.double/invoke?mode=async&delay_s=-1", b"{}", 400),
        ("POST", "/v1/functions/plain.double/invoke?mode=async&delay_s=nan", b"{}", 400),
        ("POST", "/v1/functions/plain.double/invoke?mode=async&prio=1", b"{}", 400),
        ("POST", "/v1/functions/plain.double/invoke-many", b'{"n": 1}', 400),
        ("POST", "/v1/functions/plain.double/invoke-many", b"[1, 2", 400),
        ("POST", "/v1/functions/plain.squares/invoke", b"{}", 400),
        ("POST", "/v1/dead-letters/redrive", b"[1", 400),
        ("POST", "/v1/dead-letters/redrive", b'{"fnuction": "x"}', 400),
        ("POST", "/v1/dead-letters/redrive", b'{"limit": "ten"}', 400),
        ("POST", "/v1/jobs", b"{", 400),
        ("POST", "/v1/jobs", b"[]", 400),
        ("POST", "/v1/jobs", b'{"function": "plain.double", "input": [1]}', 400),
        ("POST", "/v1/jobs", b'{"function": "plain.absent", "input": [1]}', 404),
        ("POST", "/v1/invocations/wait", b'{"ids": 5}', 400),
        ("POST", "/v1/invocations/wait", b'{"ids": ["zz"]}', 400),
        ("GET", "/v1/invocations/zz", None, 404),
        ("GET", "/v1/invocations/0123456789abcdef", None, 404),
        ("GET", "/v1/invocations?status=done", None, 400),
        ("GET", "/v1/invocations?limit=0", None, 400),
        ("GET", "/v1/invocations?cursor=!", None, 400),
        ("GET", "/v1/jobs/0123456789abcdef", None, 404),
        ("POST", "/v1/functions/plain.absent/pause", b"{}", 404),
        ("GET", "/v1/nothing", None, 404),
        ("DELETE", "/v1/stats", None, 405),
        ("PUT", "/v1/buckets/Not_A_Bucket", b"", 400),
        ("GET", "/v1/objects/headrace-system/payloads", None, 403),
        ("GET", "/v1/logs?after=x", None, 400),
    ],
)
def test_a_wrong_request_is_answered_with_its_status_and_the_one_error_model(
    node: Serving, method: str, path: str, body: bytes | None, status: int
) -> None:
    address, _, text = path.partition("?")
    query = dict(part.split("=", 1) for part in text.split("&")) if text else {}
    headers = {"Content-Type": "application/json"} if body is not None else {}
    answer = node.client.backend.request(method, address, query=query, body=body, headers=headers)
    assert answer.status == status, answer.body
    error = json.loads(answer.body)["error"]
    assert error["code"]
    assert error["message"]
    assert "Traceback" not in error["message"]


def test_a_payload_of_another_kind_is_refused_by_the_client(node: Serving) -> None:
    with pytest.raises(InvalidPayload):
        node.client.invoke("plain.double", {"n": object()})
    with pytest.raises(InvalidKey):
        node.client.put_object("s3://keys/" + "x" * 1100, b"")
