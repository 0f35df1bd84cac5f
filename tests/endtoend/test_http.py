"""The HTTP face of a running node: routes, direct calls, access, objects, and events of a job."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from headrace import Client
from tests.serving import Serving, serving, wait_until

CODE = Path(__file__).with_name("plain_functions.py")
JSON = {"Content-Type": "application/json"}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])


def ask(
    node: Serving, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Reply:
    """One request as any HTTP client makes it, with no token but what `headers` hold."""
    place = urlsplit(node.client.url)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    sent = {**(JSON if isinstance(body, dict | list) else {}), **(headers or {})}
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    try:
        connection.request(method, path, body=data, headers=sent)
        answer = connection.getresponse()
        return Reply(
            answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        )
    finally:
        connection.close()


def bearer(node: Serving, secret: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret or (node.data / 'token').read_text().strip()}"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(CODE, folder=tmp_path_factory.mktemp("http")) as found:
        yield found


# ---- users' routes ----


def test_a_route_binds_path_query_and_body_and_converts_them(node: Serving) -> None:
    answer = ask(node, "POST", "/shops/caf%C3%A9/orders/17?express=true", {"product": "tea", "count": 3})
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json == {"shop": "café", "number": 17, "express": True, "total": 3}


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/shops/a/orders/first", {"product": "tea", "count": 3}, ["number"]),
        ("/shops/a/orders/1?express=perhaps", {"product": "tea", "count": 3}, ["express"]),
        ("/shops/a/orders/1", {"product": "", "count": 0}, ["product", "count"]),
        ("/shops/a/orders/1", {"product": "tea"}, ["count"]),
        ("/shops/a/orders/1", None, ["body"]),
    ],
)
def test_a_call_that_does_not_fit_is_answered_422_naming_the_fields(
    node: Serving, path: str, body: object, fields: list[str]
) -> None:
    answer = ask(node, "POST", path, body)
    assert (answer.status, answer.code) == (422, "invalid_event")
    for name in fields:
        assert name in answer.body.decode()


def test_a_body_that_is_no_json_is_the_callers_fault(node: Serving) -> None:
    answer = ask(node, "POST", "/shops/a/orders/1", b"{product", JSON)
    assert answer.status in (400, 422)
    assert "Traceback" not in answer.body.decode()


def test_a_route_may_shape_its_answer_and_take_the_rest_of_the_path(node: Serving) -> None:
    answer = ask(node, "GET", "/files/a/b%20c/d.txt")
    assert (answer.status, answer.headers["x-path"], answer.body) == (203, "shown", b"<p>a/b c/d.txt</p>")


def test_another_path_is_404_and_another_method_405_with_what_is_allowed(node: Serving) -> None:
    absent, wrong = ask(node, "GET", "/nothing/here"), ask(node, "GET", "/shops/a/orders/1")
    assert (absent.status, absent.code) == (404, "not_found")
    assert (wrong.status, wrong.code, wrong.headers["allow"]) == (405, "method_not_allowed", "POST")


def test_a_function_that_fails_is_500_without_its_stack_and_one_that_is_slow_504(node: Serving) -> None:
    broken, slow = ask(node, "GET", "/broken"), ask(node, "GET", "/slow")
    assert (broken.status, broken.code) == (500, "function_error")
    assert b"plain_functions.py" not in broken.body
    assert (slow.status, slow.code) == (504, "timeout")


def test_an_asynchronous_route_answers_202_and_the_invocation_is_polled(node: Serving) -> None:
    answer = ask(node, "POST", "/later", {"product": "tea", "count": 3})
    assert answer.status == 202
    id = answer.json["invocation_id"]
    assert answer.headers["headrace-invocation-id"] == id
    assert ask(node, "GET", f"/v1/invocations/{id}").status == 401
    found = ask(node, "GET", f"/v1/invocations/{id}?wait_s=20", headers=bearer(node)).json
    assert (found["status"], found["result"], found["function"]) == ("succeeded", 4, "plain.later")


def test_the_description_lists_the_routes_and_anybody_on_this_machine_may_ask_for_health(
    node: Serving,
) -> None:
    described = ask(node, "GET", "/openapi.json").json
    assert {"/shops/{shop}/orders/{number}", "/later", "/slow"} <= set(described["paths"])
    assert ask(node, "GET", "/healthz").json == {"status": "ok"}
    assert ask(node, "GET", "/readyz").status == 200


# ---- direct calls ----


def test_a_synchronous_call_with_an_idempotency_key_runs_once(node: Serving) -> None:
    headers = {**bearer(node), "Idempotency-Key": "http-1"}
    path = "/v1/functions/plain.double/invoke"
    before = node.client.stats()["functions"]["plain.double"]
    first, again = ask(node, "POST", path, {"n": 21}, headers), ask(node, "POST", path, {"n": 21}, headers)
    other = ask(node, "POST", path, {"n": 22}, headers)

    assert (first.status, first.json, again.json) == (200, 42, 42)
    assert first.headers["headrace-invocation-id"] == again.headers["headrace-invocation-id"]
    assert (other.status, other.code) == (422, "idempotency_mismatch")
    after = node.check_books()["functions"]["plain.double"]
    assert (after["accepted"] - before["accepted"], after["deduplicated"] - before["deduplicated"]) == (1, 1)


def test_callers_beyond_workers_and_burst_are_answered_429_with_when_to_try_again(tmp_path: Path) -> None:
    with serving(
        CODE, folder=tmp_path, workers=1, env={"HEADRACE_BURST_WORKERS": "1", "HEADRACE_SYNC_WAIT_S": "0.2"}
    ) as node:
        headers, path = bearer(node), "/v1/functions/plain.hold/invoke"
        held: list[Reply] = []

        def hold(name: str) -> None:
            held.append(ask(node, "POST", path, {"folder": str(tmp_path), "name": name}, headers))

        callers = [threading.Thread(target=hold, args=(name,)) for name in ("a", "b")]
        for caller in callers:
            caller.start()
        wait_until(lambda: len(list(tmp_path.glob("began-*"))) == 2, "both to be held")
        refused = ask(node, "POST", "/v1/functions/plain.double/invoke", {"n": 1}, headers)
        (tmp_path / "open").touch()
        for caller in callers:
            caller.join(20)

        assert (refused.status, refused.code) == (429, "throttled")
        assert int(refused.headers["retry-after"]) >= 1
        assert sorted(one.json for one in held) == ["a", "b"]
        assert node.client.invoke("plain.double", {"n": 1}) == 2
        assert node.check_books()["total"]["sync"]["throttled"] == 1


# ---- access ----


def test_v1_wants_a_token_and_each_token_does_what_its_scopes_allow(tmp_path: Path) -> None:
    tokens = "ci:invoke:i-secret,eye:read:r-secret,boss:admin:a:secret"
    with serving(CODE, folder=tmp_path, env={"HEADRACE_TOKENS": tokens}, token="a:secret") as node:

        def status(method: str, path: str, secret: str | None, body: object = None) -> int:
            return ask(node, method, path, body, bearer(node, secret) if secret else {}).status

        invoke = "/v1/functions/plain.double/invoke"
        callers = (None, "wrong", "r-secret", "i-secret")
        assert [status("POST", invoke, secret, {"n": 1}) for secret in callers] == [401, 401, 403, 200]
        callers = (None, "i-secret", "r-secret", "a:secret")
        assert [status("GET", "/v1/stats", secret) for secret in callers] == [401, 403, 200, 200]
        pause = "/v1/functions/plain.double/pause"
        assert [status("POST", pause, secret) for secret in ("r-secret", "i-secret", "a:secret")] == [
            403,
            403,
            200,
        ]
        call = "/v1/functions/headrace.call/invoke"
        assert status("POST", call, "i-secret", {}) == 403
        assert status("GET", "/metrics", None) == 401
        assert status("POST", "/later", None, {"product": "tea", "count": 1}) == 202
        denied = ask(node, "GET", "/v1/stats")
        assert denied.headers["www-authenticate"] == "Bearer"


def test_a_foreign_host_or_origin_and_a_form_are_refused(node: Serving) -> None:
    path = "/v1/functions/plain.double/invoke"
    assert ask(node, "GET", "/healthz", headers={"Host": "evil.example"}).status == 403
    assert (
        ask(node, "POST", "/later", {"product": "t", "count": 1}, {"Host": "evil.example:80"}).status == 403
    )
    assert ask(node, "POST", path, {"n": 1}, {**bearer(node), "Origin": "http://evil.example"}).status == 403
    own = {**bearer(node), "Origin": node.client.url}
    assert ask(node, "POST", path, {"n": 1}, own).json == 2
    form = {**bearer(node), "Content-Type": "text/plain"}
    assert ask(node, "POST", path, b'{"n": 1}', form).status == 400


def test_the_token_of_a_first_start_is_readable_by_its_owner_only_and_stays(tmp_path: Path) -> None:
    with serving(CODE, folder=tmp_path) as node:
        token = (node.data / "token").read_text()
        assert (node.data / "token").stat().st_mode & 0o777 == 0o600
        node.restart()
        assert (node.data / "token").read_text() == token
        assert node.client.stats()["total"]["accepted"] == 0


# ---- objects ----


@pytest.mark.parametrize(
    ("asked", "status", "found", "content_range"),
    [
        (None, 200, b"0123456789", None),
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=0-99", 206, b"0123456789", "bytes 0-9/10"),
        ("bytes=10-", 416, None, None),
        ("bytes=x-1", 200, b"0123456789", None),
    ],
)
def test_an_object_is_read_whole_or_in_ranges(
    node: Serving, asked: str | None, status: int, found: bytes | None, content_range: str | None
) -> None:
    assert ask(node, "PUT", "/v1/buckets/ranges", headers=bearer(node)).status == 201
    put = ask(
        node,
        "PUT",
        "/v1/objects/ranges/a/digits.txt",
        b"0123456789",
        {**bearer(node), "Content-Type": "text/plain"},
    )
    assert put.status == 201
    answer = ask(
        node,
        "GET",
        "/v1/objects/ranges/a/digits.txt",
        headers={**bearer(node), **({"Range": asked} if asked else {})},
    )
    assert answer.status == status
    if found is not None:
        assert answer.body == found
        assert answer.headers["etag"] == f'"{put.json["etag"]}"'
        assert answer.headers.get("content-range") == content_range


def test_an_object_is_written_only_if_what_the_caller_expects_is_there(node: Serving) -> None:
    ask(node, "PUT", "/v1/buckets/conditional", headers=bearer(node))
    path = "/v1/objects/conditional/one"

    def put(data: bytes, **conditions: str) -> Reply:
        return ask(
            node,
            "PUT",
            path,
            data,
            {**bearer(node), **{k.replace("_", "-"): v for k, v in conditions.items()}},
        )

    first = put(b"1", If_None_Match="*")
    assert first.status == 201
    assert put(b"2", If_None_Match="*").status == 412
    assert put(b"2", If_Match='"other"').status == 412
    assert put(b"2", If_Match=f'"{first.json["etag"]}"').status == 201
    assert ask(node, "GET", path, headers=bearer(node)).body == b"2"
    head = ask(node, "HEAD", path, headers=bearer(node))
    assert (head.status, head.headers["content-length"], head.body) == (200, "1", b"")
    assert ask(node, "DELETE", path, headers=bearer(node)).status == 204
    assert ask(node, "GET", path, headers=bearer(node)).status == 404


def test_an_upload_that_breaks_off_leaves_no_object(node: Serving) -> None:
    ask(node, "PUT", "/v1/buckets/broken", headers=bearer(node))
    place = urlsplit(node.client.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.putrequest("PUT", "/v1/objects/broken/half.bin")
    for name, value in {**bearer(node), "Content-Length": "1000000"}.items():
        connection.putheader(name, value)
    connection.endheaders(b"x" * 300_000)
    connection.close()

    assert ask(node, "PUT", "/v1/objects/broken/whole.bin", b"whole", bearer(node)).status == 201
    listed = ask(node, "GET", "/v1/objects/broken", headers=bearer(node)).json["items"]
    assert [item["key"] for item in listed] == ["whole.bin"]


# ---- jobs ----


def test_the_events_of_a_job_tell_its_progress_and_its_end(node: Serving, tmp_path: Path) -> None:
    items = [{"n": n, "gate": str(tmp_path / f"gate-{n}")} for n in range(3)]
    submitted = ask(
        node, "POST", "/v1/jobs", {"function": "plain.gated_squares", "input": items}, bearer(node)
    )
    assert submitted.status == 202
    place = urlsplit(node.client.url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.request("GET", f"/v1/jobs/{submitted.json['job_id']}/events", headers=bearer(node))
    stream = connection.getresponse()
    assert stream.headers["content-type"].startswith("text/event-stream")
    seen = []
    for kind, data in events(stream):
        seen.append((kind, data.get("status"), data.get("done")))
        for opened in range(min(len(items), (data.get("done") or 0) + 1)):  # one gate more at each word
            (tmp_path / f"gate-{opened}").touch()
    connection.close()

    assert seen[-1][0] == "end"
    assert seen[-2][:2] == ("progress", "succeeded")
    done = [int(count or 0) for kind, _, count in seen if kind == "progress"]
    assert done == sorted(done)
    assert len(set(done)) > 1
    assert node.client.job(submitted.json["job_id"]).result(10) == [0, 1, 4]


def events(stream: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream, up to its end."""
    kind, data = "", ""
    for raw in stream:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line[7:]
        elif line.startswith("data: "):
            data += line[6:]
        elif not line and kind:
            yield kind, json.loads(data or "{}")
            kind, data = "", ""


def test_a_job_that_is_cancelled_stops_what_runs_and_says_so(node: Serving, tmp_path: Path) -> None:
    job = node.client.submit_job(
        "plain.gated_squares", [{"n": n, "gate": str(tmp_path / "never")} for n in range(50)]
    )
    wait_until(lambda: job.status()["running"] >= 1, "a chunk to run")
    answer = ask(node, "POST", f"/v1/jobs/{job.id}/cancel", {}, bearer(node))
    assert answer.status == 202
    assert job.wait(10)["status"] == "cancelled"
    assert ask(node, "POST", f"/v1/jobs/{job.id}/cancel", {}, bearer(node)).status == 409
    assert node.client.submit_job("plain.squares", [3, 4]).result(20) == [9, 16]
    wait_until(
        lambda: node.check_books()["functions"]["plain.gated_squares"]["running"] == 0, "nothing of it to run"
    )


def test_two_clients_with_a_pool_of_threads_get_each_their_own_answers(node: Serving) -> None:
    wrong: list[int] = []

    def call(client: Client, start: int) -> None:
        for n in range(start, start + 100):
            if client.invoke("plain.double", {"n": n}) != 2 * n:
                wrong.append(n)

    callers = [threading.Thread(target=call, args=(node.client, 100 * at)) for at in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert wrong == []
