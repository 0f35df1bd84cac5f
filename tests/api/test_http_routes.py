"""Users' routes as callers see them: pages of other sites, keys, media types, ETags, forms, status URLs."""

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest

from headrace import App, Cors, FormFile, Http, HttpEvent, Items, Webhook
from headrace.runtime.api.access import Token
from headrace.runtime.api.services import Limits
from headrace.runtime.errors import InvalidFunction, InvalidSettings
from headrace.runtime.queue.outbound import Callbacks
from headrace.runtime.settings import Settings, load_settings
from tests.inline_node import InlineNode, Reply

SHOP, ADMIN = "https://shop.example", "https://admin.shop.example"
app = App(
    "web", cors=Cors(SHOP, headers=["X-Cart"], expose="X-Total", max_age=60), etag=True, max_body="1 KiB"
)
locked = App("locked", key=True)


class Order(pydantic.BaseModel):
    product: str
    count: int = 1
    tags: list[str] = []


class Photo(pydantic.BaseModel):
    title: str
    picture: FormFile
    more: list[FormFile] = []


@app.on(Http("GET", "/items/{id}"))
@app.function
def item(id: int, tag: list[str] | None = None) -> dict[str, Any]:
    return {"id": id, "tag": tag}


@app.on(Http("PUT", "/items/{id}"))
@app.function
def put(id: int, body: Order) -> dict[str, Any]:
    return {"id": id, **body.model_dump()}


@app.on(Http("GET", "/tagged"))
@app.function
def tagged() -> dict[str, Any]:
    return {"statusCode": 200, "headers": {"ETag": 'W/"own"', "Cache-Control": "max-age=5"}, "body": "text"}


@app.on(Http("POST", "/any", cors=Cors("*")))
@app.function
def anything(event: HttpEvent) -> Any:
    return {"id": event["requestContext"]["requestId"], "body": event.get("body")}


@app.on(Http("POST", "/photos", max_body="64 KiB"))
@app.function
def photo(body: Photo) -> dict[str, Any]:
    files = [body.picture, *body.more]
    return {"title": body.title, "files": [(one.filename, one.content_type, len(one.data)) for one in files]}


@app.on(Http("POST", "/images", accepts=["image/*"]))
@app.function
def image(body: bytes) -> int:
    return len(body)


@app.on(Http("GET", "/logins", cors=Cors([SHOP, "https://*.shop.example"], credentials=True)))
@app.function
def logins() -> str:
    return "in"


@app.on(Http("POST", "/later", asynchronous=True, callback=True))
@app.function(retries=0)
def later(body: Order) -> int:
    if body.count < 0:
        raise ValueError("a negative count")
    return body.count


@app.on(Http("POST", "/squares"))
@app.job(split=Items())
def squares(chunk: Any) -> list[int]:
    return [n * n for n in chunk.items()]


@locked.on(Http("GET", "/private"))
@locked.function
def private(event: HttpEvent) -> Any:
    about = event["requestContext"]["authorizer"]
    return {"key": about["key"], "headers": sorted(event.headers)}


@locked.on(Http("DELETE", "/private", key="orders.write"))
@locked.function
def remove() -> str:
    return "removed"


@locked.on(Http("GET", "/open", key=False))
@locked.function
def open_to_all() -> str:
    return "open"


TOKENS = [
    Token("one", "k-one", ["invoke@locked.private"]),
    Token("all", "k-all", ["invoke@locked.*", "orders.write"]),
    Token("other", "k-other", ["invoke@web.*", "read"]),
    Token("hashed", f"sha256:{hashlib.sha256(b'k-hashed').hexdigest()}", ["invoke"]),
]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    async with InlineNode(
        tmp_path, app, locked, tokens=TOKENS, limits=Limits(sync_body_bytes=1 << 20)
    ) as node:
        yield node


async def ask(node: InlineNode, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """A call without a token, whose headers are given with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    path, _, query = path.partition("?")
    pairs = dict(pair.split("=", 1) for pair in query.split("&")) if query else {}
    return await node.request(method, path, body, query=pairs, headers=named, token=None)


def refused(reply: Reply, status: int, code: str) -> None:
    assert (reply.status, reply.error["code"]) == (status, code), reply.body


# ---- pages of other sites ----


async def test_a_page_that_is_named_may_read_the_answer(node: InlineNode) -> None:
    answer = await ask(node, "GET", "/items/1", origin=SHOP)

    assert answer.headers["access-control-allow-origin"] == SHOP
    assert answer.headers["vary"] == "origin"
    assert "access-control-allow-credentials" not in answer.headers
    assert {"x-total", "etag", "x-request-id"} <= set(
        answer.headers["access-control-expose-headers"].split(", ")
    )


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://shop.example", f"{SHOP}.evil.example"]
)
async def test_a_page_that_is_not_named_may_not(node: InlineNode, origin: str) -> None:
    answer = await ask(node, "GET", "/items/1", origin=origin)

    assert answer.status == 200
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["vary"] == "origin"


async def test_errors_are_readable_by_the_page_as_well(node: InlineNode) -> None:
    for path in ("/items/x",):
        answer = await ask(node, "GET", path, origin=SHOP)
        refused(answer, 422, "invalid_event")
        assert answer.headers["access-control-allow-origin"] == SHOP


async def test_a_preflight_tells_what_a_page_may_send(node: InlineNode) -> None:
    answer = await ask(node, "OPTIONS", "/items/1", origin=SHOP, access_control_request_method="PUT")

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert answer.headers["access-control-allow-methods"] == "GET, PUT"
    assert answer.headers["access-control-max-age"] == "60"
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    assert {"x-cart", "content-type", "idempotency-key"} <= set(allowed)


async def test_a_preflight_of_another_page_or_method_allows_nothing(node: InlineNode) -> None:
    other = await ask(
        node, "OPTIONS", "/items/1", origin="https://evil.example", access_control_request_method="PUT"
    )
    absent = await ask(node, "OPTIONS", "/items/1", origin=SHOP, access_control_request_method="PATCH")
    for answer in (other, absent):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_logins_are_sent_to_named_origins_and_those_below_only(node: InlineNode) -> None:
    below = await ask(node, "GET", "/logins", origin=ADMIN)
    assert below.headers["access-control-allow-origin"] == ADMIN
    assert below.headers["access-control-allow-credentials"] == "true"
    for origin in (
        "https://shop.example.evil",
        "https://evilshop.example",
        "https://evil.example/.shop.example",
    ):
        assert "access-control-allow-origin" not in (await ask(node, "GET", "/logins", origin=origin)).headers


async def test_a_route_for_every_page_says_so_without_naming_any(node: InlineNode) -> None:
    answer = await ask(node, "POST", "/any", b"x", origin="https://evil.example")

    assert answer.headers["access-control-allow-origin"] == "*"
    assert "vary" not in answer.headers


@pytest.mark.parametrize(
    "settings",
    [
        {"origins": "*", "credentials": True},
        {"origins": "shop.example"},
        {"origins": "https://shop.example/path"},
        {"origins": []},
        {"origins": "https://a.example", "headers": ["*"]},
        {"origins": "https://a.example", "max_age": -1},
    ],
)
def test_what_would_open_more_than_is_meant_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidFunction):
        Cors(**settings)


async def test_options_without_a_page_names_the_methods(node: InlineNode) -> None:
    answer = await ask(node, "OPTIONS", "/items/1")
    assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, PUT")


# ---- keys ----


async def test_a_route_with_a_key_is_open_to_keys_of_its_function(node: InlineNode) -> None:
    refused(await ask(node, "GET", "/private"), 401, "unauthorized")
    refused(await ask(node, "GET", "/private", x_api_key="wrong"), 401, "unauthorized")
    refused(await ask(node, "GET", "/private", x_api_key="k-other"), 403, "forbidden")
    for headers in ({"x_api_key": "k-one"}, {"authorization": "Bearer k-one"}):
        answer = await ask(node, "GET", "/private", **headers)
        assert (answer.status, answer.json["key"]) == (200, "one")
        assert not {"x-api-key", "authorization"} & set(answer.json["headers"])
    assert (await ask(node, "GET", "/private", x_api_key="k-hashed")).status == 200


async def test_two_keys_do_not_share_what_each_calls_once(node: InlineNode) -> None:
    first = await ask(node, "GET", "/private", x_api_key="k-one", idempotency_key="same")
    other = await ask(node, "GET", "/private", x_api_key="k-all", idempotency_key="same")
    again = await ask(node, "GET", "/private", x_api_key="k-one", idempotency_key="same")

    assert [one.json["key"] for one in (first, other, again)] == ["one", "all", "one"]
    assert "headrace-repeated" not in other.headers
    assert again.headers["headrace-repeated"] == "true"


async def test_a_route_may_ask_for_a_scope_of_the_users_own(node: InlineNode) -> None:
    refused(await ask(node, "DELETE", "/private", x_api_key="k-one"), 403, "forbidden")
    assert (await ask(node, "DELETE", "/private", x_api_key="k-all")).json == "removed"
    assert (await ask(node, "GET", "/open")).json == "open"


async def test_a_key_of_some_functions_calls_no_others(node: InlineNode) -> None:
    async def invoke(name: str, secret: str) -> int:
        return (await node.request("POST", f"/v1/functions/{name}/invoke", None, token=secret)).status

    assert await invoke("locked.open_to_all", "k-all") == 200
    assert await invoke("locked.open_to_all", "k-one") == 403
    assert await invoke("web.logins", "k-other") == 200
    assert await invoke("headrace.call", "k-other") == 403


@pytest.mark.parametrize("key", ["admin", "Orders.Write", "", 1, "invoke@x"])
def test_a_scope_of_ones_own_holds_a_dot(key: Any) -> None:
    with pytest.raises(InvalidFunction, match="key is"):
        Http("GET", "/", key=key)


# ---- bodies ----


async def test_a_body_of_another_type_is_415_and_says_what_is_taken(node: InlineNode) -> None:
    answer = await ask(node, "PUT", "/items/1", b"<order/>", content_type="application/xml")
    refused(answer, 415, "unsupported_media_type")
    assert "application/json" in answer.error["hint"]
    refused(
        await ask(node, "POST", "/images", b"x", content_type="text/plain"), 415, "unsupported_media_type"
    )
    assert (await ask(node, "POST", "/images", b"\xff\xd8", content_type="image/jpeg")).json == 2
    merge = "application/merge-patch+json; charset=utf-8"
    assert (await ask(node, "PUT", "/items/1", {"product": "tea"}, content_type=merge)).status == 200


async def test_a_compressed_body_is_415(node: InlineNode) -> None:
    answer = await ask(node, "PUT", "/items/1", b"\x1f\x8b", content_encoding="gzip")
    refused(answer, 415, "unsupported_media_type")
    assert answer.headers["accept-encoding"] == "identity"
    assert (await ask(node, "PUT", "/items/1", {"product": "tea"}, content_encoding="identity")).status == 200


async def test_a_body_above_the_routes_own_limit_is_413(node: InlineNode) -> None:
    refused(await ask(node, "PUT", "/items/1", b"x" * 1025), 413, "payload_too_large")


async def test_what_is_wrong_is_named_with_its_place(node: InlineNode) -> None:
    answer = await ask(node, "PUT", "/items/x", {"count": "many"})
    refused(answer, 422, "invalid_event")
    found = {(one["in"], one["loc"]) for one in answer.error["fields"]}
    assert found == {("path", "id"), ("body", "body.product"), ("body", "body.count")}
    broken = await ask(node, "PUT", "/items/1", b"{")
    refused(broken, 422, "invalid_event")
    assert broken.error["fields"][0]["in"] == "body"


async def test_a_form_fills_a_model(node: InlineNode) -> None:
    form = "application/x-www-form-urlencoded"
    answer = await ask(node, "PUT", "/items/1", b"product=green+tea&count=3&tags=a", content_type=form)
    assert answer.json == {"id": 1, "product": "green tea", "count": 3, "tags": ["a"]}
    wrong = await ask(node, "PUT", "/items/1", b"count=x", content_type=form)
    refused(wrong, 422, "invalid_event")


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """A multipart body with the boundary `b`: of each part, what follows its name, and its data."""
    return (
        b"".join(
            b"--b\r\ncontent-disposition: form-data; name=" + head.encode() + b"\r\n\r\n" + data + b"\r\n"
            for head, data in parts
        )
        + b"--b--\r\n"
    )


async def test_a_form_brings_files(node: InlineNode) -> None:
    body = multipart(
        ('"title"', "Ärger".encode()),
        ('"picture"; filename="a.jpg"\r\ncontent-type: image/jpeg', bytes(range(256))),
        ('"more"; filename="b.txt"', b"b"),
    )
    answer = await ask(node, "POST", "/photos", body, content_type="multipart/form-data; boundary=b")
    assert answer.json == {
        "title": "Ärger",
        "files": [["a.jpg", "image/jpeg", 256], ["b.txt", "application/octet-stream", 1]],
    }
    refused(await ask(node, "POST", "/photos", {"title": "x"}), 415, "unsupported_media_type")
    torn = await ask(node, "POST", "/photos", body[:-9], content_type="multipart/form-data; boundary=b")
    refused(torn, 422, "invalid_event")


async def test_a_compressed_body_of_a_direct_call_is_415_too(node: InlineNode) -> None:
    for action in ("invoke", "invoke-many"):
        path = f"/v1/functions/web.put/{action}"
        answer = await node.request("POST", path, b"\x1f\x8b", headers={"content-encoding": "gzip"})
        refused(answer, 415, "unsupported_media_type")


# ---- ETag and HEAD ----


async def test_an_answer_that_the_caller_has_is_304(node: InlineNode) -> None:
    first = await ask(node, "GET", "/items/1")
    again = await ask(node, "GET", "/items/1", if_none_match=f'"x", W/{first.headers["etag"]}')
    other = await ask(node, "GET", "/items/2", if_none_match=first.headers["etag"])

    assert re.fullmatch('"[0-9a-f]+"', first.headers["etag"])
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert "content-type" not in again.headers
    assert other.status == 200


async def test_a_functions_own_etag_is_kept_and_compared(node: InlineNode) -> None:
    assert (await ask(node, "GET", "/tagged")).headers["etag"] == 'W/"own"'
    unchanged = await ask(node, "GET", "/tagged", if_none_match='"own"')
    assert (unchanged.status, unchanged.headers["cache-control"]) == (304, "max-age=5")


async def test_head_has_the_headers_of_get_and_no_body(node: InlineNode) -> None:
    get, head = await ask(node, "GET", "/items/1"), await ask(node, "HEAD", "/items/1")

    assert (head.status, head.body) == (200, b"")
    for name in ("content-length", "content-type", "etag"):
        assert head.headers[name] == get.headers[name]


# ---- request ids and the log ----


@pytest.mark.parametrize("given", ["abc-123", "A" * 128])
async def test_a_callers_request_id_goes_through_the_event_to_the_answer(
    node: InlineNode, given: str
) -> None:
    answer = await ask(node, "POST", "/any", b"x", x_request_id=given)
    assert answer.headers["x-request-id"] == answer.json["id"] == given


@pytest.mark.parametrize("given", ["A" * 129, "a b", "<script>", "é"])
async def test_what_is_no_plain_request_id_is_replaced(node: InlineNode, given: str) -> None:
    answer = await ask(node, "POST", "/any", b"x", x_request_id=given)
    assert answer.headers["x-request-id"] == answer.json["id"] != given


async def test_every_answer_has_a_request_id_of_its_own(node: InlineNode) -> None:
    answers = [
        await ask(node, "GET", path) for path in ("/items/1", "/items/x", "/nowhere", "/healthz", "/v1/stats")
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 5


async def test_the_access_log_tells_of_each_request_without_its_query(node: InlineNode) -> None:
    lines: list[Any] = []
    node.services.log_request = lines.append
    answer = await ask(node, "GET", "/items/1?tag=secret")
    await ask(node, "GET", "/nowhere")

    assert [(line["method"], line["path"], line["status"]) for line in lines] == [
        ("GET", "/items/1", 200),
        ("GET", "/nowhere", 404),
    ]
    assert lines[0]["bytes"] == len(answer.body)
    assert lines[0]["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in str(lines)
    await ask(node, "GET", "/items/%1b%5b2J%0a")
    assert lines[-1]["path"] == "/items/%1b%5b2J%0a"


async def test_a_node_that_stops_closes_its_connections(node: InlineNode) -> None:
    node.services.draining = True
    answer = await ask(node, "GET", "/healthz")
    assert answer.headers["connection"] == "close"


async def test_a_route_for_all_paths_does_not_hide_the_nodes_own(tmp_path: Path) -> None:
    site = App("site")

    @site.on(Http("GET", "/{page:path}"))
    @site.on(Http("GET", "/docs"))
    @site.function
    def show(event: HttpEvent) -> str:
        return event.path

    async with InlineNode(tmp_path, site) as node:
        assert (await ask(node, "GET", "/readyz")).json == {"status": "ready"}
        assert (await ask(node, "GET", "/docs")).json == "/docs"
        assert (await ask(node, "GET", "/about")).json == "/about"


# ---- asynchronous routes ----


async def test_the_caller_of_an_asynchronous_route_asks_by_its_ticket(node: InlineNode) -> None:
    accepted = await ask(node, "POST", "/later", {"product": "tea", "count": 7})
    assert accepted.status == 202
    url, id = accepted.json["status_url"], accepted.json["invocation_id"]
    assert accepted.headers["location"] == url
    await node.idle()
    answer = await ask(node, "GET", url, origin="https://anywhere.example")

    assert (answer.status, answer.json["status"], answer.json["result"]) == (200, "succeeded", 7)
    assert answer.json["invocation_id"] == id
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "no-store"
    for wrong in (id, f"{id}.", f"{id}.AAAA", url[10:-1], url[10:].replace(id, "0" * 16)):
        refused(await ask(node, "GET", f"/v1/calls/{wrong}"), 404, "unknown_invocation")


async def test_a_failure_is_told_by_the_ticket_without_its_stack(node: InlineNode) -> None:
    accepted = await ask(node, "POST", "/later", {"product": "tea", "count": -1})
    await node.idle()
    told = (await ask(node, "GET", accepted.json["status_url"])).json

    assert told["status"] == "dead"
    assert told["error"] == {"code": "function_error", "message": "a negative count"}


async def test_a_callback_is_refused_before_the_call_is_accepted(node: InlineNode) -> None:
    body = {"product": "tea"}
    refused(
        await ask(node, "POST", "/later", body, headrace_callback="https://a.example/"), 400, "bad_request"
    )
    node.services.callbacks = Callbacks("whsec_x")
    for url in ("http://a.example/", "https://127.0.0.1/", "https://u:p@a.example/", "gopher://a.example/"):
        refused(await ask(node, "POST", "/later", body, headrace_callback=url), 422, "invalid_callback")
    assert (await node.books()).accepted == 0


def test_only_an_asynchronous_route_calls_back() -> None:
    assert Http("POST", "/x", asynchronous=True, callback=True).fields()["callback"] is True
    with pytest.raises(InvalidFunction, match="only an asynchronous route"):
        Http("POST", "/x", callback=True)


async def test_a_job_that_cannot_be_made_once_refuses_an_idempotency_key(node: InlineNode) -> None:
    refused(await ask(node, "POST", "/squares", [1, 2], idempotency_key="k"), 400, "bad_request")
    assert (await ask(node, "POST", "/squares", [1, 2])).status == 202
    refused(
        await ask(node, "POST", "/squares", b"<x/>", content_type="text/xml"), 415, "unsupported_media_type"
    )


# ---- settings ----


def test_all_settings_travel_as_fields() -> None:
    one = Http(
        "POST",
        "/a",
        asynchronous=True,
        cors=Cors(["https://a.example"], credentials=True),
        key="a.b",
        accepts="image/*",
        max_body="1 KiB",
        etag=False,
        callback=True,
        webhook=Webhook.github("SECRET_OF_TEST"),
    )
    fields = msgspec.json.decode(msgspec.json.encode(one.fields()))
    assert Http.from_fields(fields).fields() == one.fields()
    assert Http.from_fields(fields).rules == one.rules
    with pytest.raises(InvalidFunction, match="has no SECRET_OF_TEST"):
        Http.from_fields(fields).routes()


def test_an_apps_settings_hold_where_a_route_says_nothing() -> None:
    def fields(name: str) -> dict[str, Any]:
        spec = (app if name.startswith("web") else locked).declared[name].spec
        return spec.triggers[0].fields

    assert fields("web.item")["max_body"] == 1024
    assert fields("web.photo")["max_body"] == 64 << 10
    assert fields("web.anything")["cors"]["origins"] == ("*",)
    assert fields("locked.private")["key"] is True
    assert fields("locked.remove")["key"] == "orders.write"
    assert fields("locked.open_to_all")["key"] is False


@pytest.mark.parametrize(
    "settings",
    [{"accepts": "json"}, {"max_body": "many"}, {"max_body": 0}, {"cors": "*"}, {"webhook": "github"}],
)
def test_a_setting_that_cannot_be_used_is_refused_when_it_is_declared(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidFunction):
        Http("POST", "/x", **settings)


# ---- the node's settings


@pytest.mark.parametrize(
    "text",
    [
        "ci:invoke@shop.*:s",
        "ci:invoke@a.b+invoke@a.c+read:s",
        "ci:orders.write:s",
        "ci:invoke:sha256:" + "0" * 64,
    ],
)
def test_tokens_may_be_of_functions_and_of_own_scopes_and_hashed(text: str) -> None:
    [token] = Settings(tokens=text).tokens
    assert "+".join(sorted(token.scopes)) == "+".join(sorted(text.split(":")[1].split("+")))


@pytest.mark.parametrize("text", ["ci:invok:s", "ci:invoke@:s", "ci:orders:s", "ci:invoke@shop/*:s"])
def test_a_scope_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(pydantic.ValidationError, match="is no scope"):
        Settings(tokens=text)


@pytest.mark.parametrize("secret", ["short", "whsec_c2hvcnQ=", "whsec_" + "A" * 200, "whsec_!!!!"])
def test_a_callback_secret_that_could_be_guessed_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings({"callback_secret": secret}, environ={})
    assert secret not in str(caught.value)
    assert "callback_secret" in str(caught.value)
