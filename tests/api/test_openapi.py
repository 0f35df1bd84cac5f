"""The OpenAPI document: valid, and complete for users' routes and for the node's own API."""

import enum
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import Field

from headrace import App, Http, HttpEvent, Items
from headrace.runtime.api.described import FAST, OPERATIONS
from tests.inline_node import InlineNode

things, others = App("things"), App("others")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Tree(pydantic.BaseModel):
    """A model that holds itself."""

    name: str
    children: list["Tree"] = []


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Pet(pydantic.BaseModel):
    animal: Annotated[Cat | Dog, Field(discriminator="kind")]
    marks: dict[str, Any] = {"properties": {"type": "text"}}


@things.on(Http("GET", "/trees/{id}"))
@things.function
def tree(id: int, colour: Colour = Colour.RED.value, tag: list[str] | None = None) -> Tree:  # type: ignore[assignment]
    """Shows a tree.

    With all its branches.
    """
    return Tree(name=f"{id} {colour} {tag}")


@things.on(Http("PUT", "/trees/{name}"))
@things.function
def plant(name: str, body: Tree) -> None:
    del name, body


@things.on(Http("POST", "/pets"))
@things.on(Http("PATCH", "/pets"))
@things.function
def pet(animal: Pet) -> Pet:
    return animal


@things.on(Http("GET", "/events/{rest:path}"))
@things.function
def event(event: HttpEvent) -> str:
    return event.path


@things.on(Http("POST", "/later", asynchronous=True))
@things.function
def later(body: list[int]) -> int:
    return sum(body)


@things.on(Http("POST", "/squares"))
@things.job(split=Items())
def squares(chunk: Any) -> list[int]:
    return [n * n for n in chunk.items()]


def _other_tree() -> type[pydantic.BaseModel]:
    return pydantic.create_model("Tree", height=(float, ...))


OtherTree = _other_tree()


@others.on(Http("POST", "/heights"))
@others.function
def height(body: list[OtherTree]) -> float:  # type: ignore[valid-type]
    return max(one.height for one in body)  # type: ignore[attr-defined]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[InlineNode]:
    async with InlineNode(tmp_path, things, others) as node:
        yield node


@pytest.fixture
async def document(node: InlineNode) -> dict[str, Any]:
    found: dict[str, Any] = (await node.request("GET", "/openapi.json", token=None)).json
    return found


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for key, item in value.items() if key != "default"))
    return set().union(*(references(item) for item in value)) if isinstance(value, list) else set()


async def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(document).validate()


async def test_every_reference_leads_to_a_component(document: dict[str, Any]) -> None:
    for reference in references(document):
        at: Any = document
        for step in reference.removeprefix("#/").split("/"):
            at = at[step]


async def test_every_endpoint_of_the_node_and_every_route_is_in_it(
    node: InlineNode, document: dict[str, Any]
) -> None:
    described = {
        (method.upper(), re.sub(r"\{[^}]+\}", "{}", path))
        for path, item in document["paths"].items()
        for method in item
    }
    table = {
        (line.method, re.sub(r"\{[^}]+\}", "{}", line.path)) for line in node.application.api.table()
    } | {(key.split()[0], re.sub(r"\{[^}]+\}", "{}", key.split()[1])) for key in FAST}
    routes = {
        (one.route.method, re.sub(r"\{[^}]+\}", "{}", one.route.path))
        for one in node.services.routes.endpoints
    }

    assert described == table | routes


async def test_what_is_described_by_hand_is_an_endpoint(node: InlineNode) -> None:
    table = {f"{line.method} {line.path.replace(':path}', '}')}" for line in node.application.api.table()}

    assert set(OPERATIONS) - table - set(FAST) == set()


async def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]

    assert len(set(names)) == len(names)


async def test_paths_that_differ_in_a_parameters_name_are_one_path(document: dict[str, Any]) -> None:
    item = document["paths"]["/trees/{id}"]

    assert set(item) == {"get", "put"}
    assert [one["name"] for one in item["put"]["parameters"] if one["in"] == "path"] == ["id"]
    assert "/trees/{name}" not in document["paths"]


async def test_two_models_of_one_name_stay_two(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert set(schemas["Tree"]["properties"]) == {"name", "children"}
    assert schemas["Tree"]["properties"]["children"]["items"]["$ref"] == "#/components/schemas/Tree"
    assert set(schemas["Tree_2"]["properties"]) == {"height"}
    body = document["paths"]["/heights"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["items"] == {"$ref": "#/components/schemas/Tree_2"}


async def test_unions_name_components_and_defaults_stay_as_they_are(document: dict[str, Any]) -> None:
    body = document["paths"]["/pets"]["post"]["requestBody"]["content"]["application/json"]["schema"]

    assert body["properties"]["marks"]["default"] == {"properties": {"type": "text"}}
    assert body["properties"]["animal"]["discriminator"]["mapping"] == {
        "cat": "#/components/schemas/Cat",
        "dog": "#/components/schemas/Dog",
    }


async def test_parameters_are_where_binding_looks_for_them(document: dict[str, Any]) -> None:
    operation = document["paths"]["/trees/{id}"]["get"]
    places = {one["name"]: (one["in"], one.get("required", False)) for one in operation["parameters"]}

    assert places["id"] == ("path", True)
    assert places["colour"] == ("query", False)
    assert places["tag"] == ("query", False)
    assert operation["summary"] == "Shows a tree."
    assert "requestBody" not in document["paths"]["/events/{rest}"]["get"]
    assert set(document["paths"]["/later"]["post"]["responses"]) >= {"202", "422", "default"}
    assert set(document["paths"]["/squares"]["post"]["responses"]) >= {"202"}


async def test_the_nodes_own_endpoints_name_the_scope_that_they_need(document: dict[str, Any]) -> None:
    stats = document["paths"]["/v1/stats"]["get"]

    assert stats["security"] == [{"token": []}]
    assert "`read`" in stats["description"]
    assert document["paths"]["/healthz"]["get"]["security"] == []


async def test_another_method_of_the_nodes_own_api_is_told_what_there_is(node: InlineNode) -> None:
    answer = await node.request("PATCH", "/v1/objects/some-bucket/some/key")
    assert (answer.status, answer.headers["allow"]) == (405, "DELETE, GET, HEAD, PUT")
    assert (await node.request("GET", "/v1/jobs", query={"status": "gone"})).status == 400


async def test_the_page_for_people_needs_nothing_from_elsewhere(node: InlineNode) -> None:
    answer = await node.request("GET", "/docs", token=None)
    page = answer.body.decode()

    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    assert not re.search(r"https?://|//[a-z0-9-]+\.[a-z]|@import|url\(|\bsrc=|<link", page)
    assert "innerHTML" not in page
    assert (await node.request("HEAD", "/docs", token=None)).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/docs", "/metrics"])
async def test_what_the_node_serves_beside_v1_takes_get_and_head_only(node: InlineNode, path: str) -> None:
    answer = await node.request("POST", path, {})

    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")
    assert (await node.request("HEAD", path)).status == 200
