"""`Http(...)`: declared as a value, an HTTP call as an API Gateway event, a result as an answer."""

import base64
from typing import Any

import msgspec
import pytest

from headrace import Http, HttpEvent
from headrace.runtime.errors import FunctionError, InvalidFunction
from headrace.runtime.trigger import HttpCall


def call(**fields: Any) -> HttpCall:
    given: dict[str, Any] = {
        "method": "POST",
        "path": "/r/a b",
        "query": "",
        "headers": [],
        "body": b"",
        "path_parameters": {},
        "client_ip": "10.1.1.1",
        "request_id": "req",
        "received_at": 1_800_000_000.25,
        **fields,
    }
    return HttpCall(**given)


def event(trigger: Http | None = None, **fields: Any) -> HttpEvent:
    return HttpEvent(msgspec.json.decode((trigger or Http("POST", "/r/{p}")).event(call(**fields))))


def answer(result: Any) -> tuple[int, dict[str, str], bytes]:
    found = Http("GET", "/").answer(msgspec.json.encode(result))
    return found.status, dict(found.headers), found.body


def test_its_fields_make_an_equal_trigger() -> None:
    one = Http("post", "/a/{x}/{rest:path}", asynchronous=True)
    two = Http.from_fields(msgspec.json.decode(msgspec.json.encode(one.fields())))
    assert (one.method, one.parameters) == ("POST", ["x", "rest"])
    assert one.fields() == two.fields()
    assert repr(two) == "Http('POST', '/a/{x}/{rest:path}')"
    assert one.routes() == (one,)


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("FETCH", "/a", "not an HTTP method"),
        ("GET", "a", "must begin with /"),
        ("GET", "", "must begin with /"),
        ("GET", "/v1", "reserved"),
        ("GET", "/v1/x", "reserved"),
        ("GET", "/console", "reserved"),
        ("GET", "/{a}/{a}", "occurs twice"),
        ("GET", "/{a b}", "not of the form"),
        ("GET", "/{}", "not of the form"),
        ("GET", "/a}", "not of the form"),
        ("GET", "/{a:int}", "not of the form"),
        ("GET", "/{1a}", "not of the form"),
    ],
)
def test_a_route_that_cannot_be_served_is_refused_where_it_is_written(
    method: str, path: str, message: str
) -> None:
    with pytest.raises(InvalidFunction, match=message) as caught:
        Http(method, path)
    assert caught.value.hint


def test_a_path_that_only_begins_like_a_reserved_one_is_fine() -> None:
    assert Http("GET", "/v10/x").path == "/v10/x"
    assert Http("GET", "/consoles").path == "/consoles"


def test_an_event_has_api_gateways_shape() -> None:
    found = event(
        query="a=1&b=%20x&a=2&c=",
        path_parameters={"p": "a b"},
        body=b'{"n": 1}',
        headers=[
            ("user-agent", "test"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("cookie", "a=1; b=2"),
            ("cookie", "c=3"),
        ],
    )
    assert found["version"] == "2.0"
    assert found["routeKey"] == "POST /r/{p}"
    assert found["rawPath"] == "/r/a b"
    assert found["rawQueryString"] == "a=1&b=%20x&a=2&c="
    assert found["queryStringParameters"] == {"a": "1,2", "b": " x", "c": ""}
    assert found["pathParameters"] == {"p": "a b"}
    assert found["headers"] == {"user-agent": "test", "x-a": "1,2"}
    assert found["cookies"] == ["a=1", "b=2", "c=3"]
    context = found["requestContext"]
    assert context["http"] == {
        "method": "POST",
        "path": "/r/a b",
        "protocol": "HTTP/1.1",
        "sourceIp": "10.1.1.1",
        "userAgent": "test",
    }
    assert (context["requestId"], context["timeEpoch"]) == ("req", 1_800_000_000_250)
    assert context["time"] == "15/Jan/2027:08:00:00 +0000"
    assert (found["body"], found["isBase64Encoded"]) == ('{"n": 1}', False)


def test_what_a_call_lacks_is_absent() -> None:
    found = event()
    assert {"body", "queryStringParameters", "pathParameters", "cookies"} & found.keys() == set()


@pytest.mark.parametrize("body", [b"\xff\x00", bytes(range(256)), "é".encode(), b"{", b"\0"])
def test_a_body_of_any_bytes_arrives_as_it_was(body: bytes) -> None:
    assert event(body=body).body == body


def test_a_plain_result_is_json_with_status_200() -> None:
    assert answer({"a": 1}) == (200, {"content-type": "application/json"}, b'{"a":1}')
    assert answer(None) == (200, {"content-type": "application/json"}, b"null")
    assert answer({"statusCode": "200"})[0] == 200
    assert answer(["statusCode"])[2] == b'["statusCode"]'
    assert answer({"nested": {"statusCode": 404}})[0] == 200


def test_a_shaped_result_says_status_headers_and_body_itself() -> None:
    assert answer({"statusCode": 204}) == (204, {}, b"")
    status, headers, body = answer(
        {"statusCode": 404, "headers": {"X-A": 1, "Content-Type": "text/html"}, "body": "<p>"}
    )
    assert (status, headers, body) == (404, {"x-a": "1", "content-type": "text/html"}, b"<p>")
    assert answer({"statusCode": 200, "body": "é"})[1] == {"content-type": "text/plain; charset=utf-8"}
    assert answer({"statusCode": 200, "body": {"a": 1}})[1:] == (
        {"content-type": "application/json"},
        b'{"a":1}',
    )
    coded = {"statusCode": 200, "isBase64Encoded": True, "body": base64.b64encode(b"\0\xff").decode()}
    assert answer(coded)[2] == b"\0\xff"
    own = {"Content-Length": "9", "Transfer-Encoding": "chunked", "Connection": "close", "x": "1"}
    assert answer({"statusCode": 200, "headers": own})[1] == {"x": "1"}
    found = Http("GET", "/").answer(msgspec.json.encode({"statusCode": 200, "cookies": ["a=1", "b=2"]}))
    assert [value for name, value in found.headers if name == "set-cookie"] == ["a=1", "b=2"]


@pytest.mark.parametrize(
    "result",
    [
        {"statusCode": 99},
        {"statusCode": 1000},
        {"statusCode": True},
        {"statusCode": 200, "headers": [1]},
        {"statusCode": 200, "headers": {"a\r\nb": "x"}},
        {"statusCode": 200, "headers": {"a": "x\r\nset-cookie: y"}},
        {"statusCode": 200, "headers": {"a": "日本"}},
        {"statusCode": 200, "isBase64Encoded": True, "body": "%%%"},
        {"statusCode": 200, "isBase64Encoded": True, "body": 5},
        {"statusCode": 200, "cookies": 5},
    ],
)
def test_a_shaped_result_that_http_cannot_carry_is_the_functions_error(result: dict[str, Any]) -> None:
    with pytest.raises(FunctionError, match="cannot be sent"):
        Http("GET", "/").answer(msgspec.json.encode(result))
