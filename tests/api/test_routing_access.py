"""Which function answers a path, and who may call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Http
from headrace.runtime.api.access import SCOPES, Access, Token, is_loopback
from headrace.runtime.api.routing import Endpoint, RouteTable
from headrace.runtime.errors import Forbidden, InvalidFunction, Unauthorized


def table(*routes: tuple[str, str]) -> RouteTable:
    return RouteTable(Endpoint(Http(method, path), f"app.f{n}") for n, (method, path) in enumerate(routes))


def find(
    routes: RouteTable, method: str, path: str, raw: str | None = None
) -> tuple[str | None, dict[str, str]]:
    endpoint, parameters, _ = routes.find(method, path, raw or path)
    return endpoint.function if endpoint is not None else None, parameters


def test_exact_paths_go_before_patterns_and_longer_text_before_shorter() -> None:
    routes = table(
        ("GET", "/{any}"), ("GET", "/a"), ("GET", "/{x}/b"), ("GET", "/a/{y}"), ("GET", "/{rest:path}")
    )
    assert find(routes, "GET", "/a") == ("app.f1", {})
    assert find(routes, "GET", "/z") == ("app.f0", {"any": "z"})
    assert find(routes, "GET", "/q/b") == ("app.f2", {"x": "q"})
    assert find(routes, "GET", "/a/c") == ("app.f3", {"y": "c"})
    assert find(routes, "GET", "/d/e/f") == ("app.f4", {"rest": "d/e/f"})
    assert find(routes, "GET", "/") == (None, {})


def test_a_parameter_is_one_decoded_segment_and_may_hold_an_encoded_slash() -> None:
    routes = table(("GET", "/r/{product}"), ("GET", "/files/{key:path}/meta"))
    assert find(routes, "GET", "/r/a/b", "/r/a%2Fb") == ("app.f0", {"product": "a/b"})
    assert find(routes, "GET", "/r/ü +", "/r/%C3%BC%20+") == ("app.f0", {"product": "ü +"})
    assert find(routes, "GET", "/r/a/b") == (None, {})
    assert find(routes, "GET", "/r/") == (None, {})
    assert find(routes, "GET", "/files/a/b%/meta", "/files/a/b%25/meta") == ("app.f1", {"key": "a/b%"})


def test_special_characters_of_patterns_are_plain_text_in_a_path() -> None:
    routes = table(("GET", "/a.b+c/{x}"))
    assert find(routes, "GET", "/a.b+c/1") == ("app.f0", {"x": "1"})
    assert find(routes, "GET", "/aXb+c/1") == (None, {})


def test_a_path_with_non_ascii_text_is_found_however_it_is_encoded() -> None:
    routes = table(("GET", "/größe/{x}"), ("GET", "/größe"))
    assert find(routes, "GET", "/größe", "/gr%C3%B6%C3%9Fe") == ("app.f1", {})
    assert find(routes, "GET", "/größe/1", "/gr%C3%B6%C3%9Fe/1") == ("app.f0", {"x": "1"})


def test_head_is_answered_by_get_and_other_methods_are_named() -> None:
    routes = table(("GET", "/a"), ("POST", "/a"), ("DELETE", "/a/{x}"), ("HEAD", "/own"), ("GET", "/own"))
    assert find(routes, "HEAD", "/a") == ("app.f0", {})
    assert find(routes, "HEAD", "/own") == ("app.f3", {})
    assert routes.find("PUT", "/a", "/a") == (None, {}, {"GET", "POST"})
    assert routes.find("GET", "/a/1", "/a/1") == (None, {}, {"DELETE"})
    assert routes.find("GET", "/nowhere", "/nowhere") == (None, {}, set())


def test_two_functions_cannot_serve_one_route() -> None:
    with pytest.raises(InvalidFunction) as caught:
        table(("GET", "/a/{x}"), ("GET", "/a/{y}"))
    assert "GET /a/{y} is already served by app.f0" in str(caught.value)
    with pytest.raises(InvalidFunction):
        table(("GET", "/a"), ("GET", "/a"))
    assert (
        len(table(("GET", "/a"), ("POST", "/a"), ("GET", "/a/{x}"), ("GET", "/a/{x:path}x")).endpoints) == 4
    )


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.sampled_from(["GET", "POST", "HEAD"])
)
def test_no_path_at_all_breaks_the_table(path: str, method: str) -> None:
    routes = table(("GET", "/{a}/{b}"), ("GET", "/x/{rest:path}"), ("POST", "/"))
    endpoint, parameters, allowed = routes.find(method, "/" + path, "/" + path)
    assert endpoint is None or allowed == set()
    assert endpoint is not None or parameters == {}


# ---- access
# ------------------------------------------------------------------------------------------------------

ACCESS = Access(
    [Token("all", "s3cret", SCOPES), Token("reader", "r", ["read"]), Token("root", "a", ["admin"])],
    hosts=["Node.example", "127.0.0.1"],
)


def test_a_token_is_known_by_its_secret_and_has_its_scopes_only() -> None:
    assert ACCESS.check("Bearer s3cret", "code").name == "all"
    assert ACCESS.check("bearer r", "read").name == "reader"
    assert ACCESS.check("Bearer r", "read").name == "reader"
    for scope in SCOPES:
        assert ACCESS.check("Bearer a", scope).name == "root"
    for scope in set(SCOPES) - {"read"}:
        with pytest.raises(Forbidden, match=f"'reader' lacks the scope '{scope}'"):
            ACCESS.check("Bearer r", scope)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "s3cret",
        "Basic s3cret",
        "Bearer s3cret2",
        "Bearer S3cret",
        "Bearer s3cre",
    ],
)
def test_without_a_known_token_nobody_is_let_in(header: str | None) -> None:
    with pytest.raises(Unauthorized):
        ACCESS.check(header, "read")


@pytest.mark.parametrize(
    "host",
    ["node.example", "NODE.example:80", "127.0.0.1:8080", "localhost", "localhost:1", "[::1]:80", "[::1]"],
)
def test_the_nodes_own_names_and_this_machines_are_served(host: str) -> None:
    ACCESS.check_host(host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "node.example.evil", "10.0.0.1", "", "127.0.0.1.evil.com"]
)
def test_another_name_is_a_rebound_one(host: str) -> None:
    with pytest.raises(Forbidden):
        ACCESS.check_host(host)
    Access([]).check_host(host)


def test_pages_of_other_sites_are_refused() -> None:
    ACCESS.check_origin("http://localhost:8080", "localhost:8080")
    ACCESS.check_origin("https://Node.example", "node.example")
    for origin in ("http://evil.example", "null", "http://localhost:8081", "file://"):
        with pytest.raises(Forbidden, match="may not call"):
            ACCESS.check_origin(origin, "localhost:8080")


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("", False),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost.evil", False),
        ("node", False),
    ],
)
def test_loopback_is_this_machine(name: str, local: bool) -> None:
    assert is_loopback(name) is local
