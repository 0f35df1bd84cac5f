"""The page of the HTTP API has the endpoints that there are, and each answers."""

import re
from pathlib import Path
from typing import Any, cast

import pytest
from pages import GUIDE
from starlette.routing import Route

from headrace import App
from headrace.runtime.api.v1 import Api

TEXT = (GUIDE / "api.md").read_text(encoding="utf-8")
# Served before the routing table, since they have to be fast or need no token.
BESIDE = {
    "POST /v1/functions/{name}/invoke", "POST /v1/functions/{name}/invoke-many", "POST /v1/events/minio",
    "GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs", "GET /metrics",
}  # fmt: skip


class NoServices:
    """All that building the table of routes asks of a node."""

    access = None


def served() -> set[str]:
    app = Api(cast(Any, NoServices()), cast(Any, None)).app()
    found = set()
    for route in app.routes:
        assert isinstance(route, Route)
        methods = set(route.methods or ())
        if methods == {"GET", "HEAD"}:  # Starlette adds HEAD to each GET
            methods = {"GET"}
        found |= {f"{method} {route.path.replace(':path}', '}')}" for method in methods}
    return found | BESIDE


def documented() -> list[str]:
    return re.findall(r"^\| `((?:GET|HEAD|POST|PUT|PATCH|DELETE) /\S+)`", TEXT, re.MULTILINE)


def test_the_page_has_the_endpoints_that_there_are() -> None:
    found = documented()

    assert len(set(found)) == len(found)
    assert set(found) == served()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/docs"])
def test_what_is_said_to_need_no_token_needs_none(path: str, tmp_path: Path) -> None:
    import urllib.request

    from headrace.runtime.embedded import EmbeddedNode

    with EmbeddedNode.of_app(App("nothing"), data=tmp_path, workers=1, http=True) as client:
        with urllib.request.urlopen(client.url + path, timeout=10) as answer:
            assert answer.status == 200
