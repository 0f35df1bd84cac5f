"""The OpenAPI document of users' routes, made from what the functions declare.

Imports this room and the floor. Source of the form: OpenAPI Specification 3.1.
"""

import re
from typing import Any

from headrace.runtime.api.routing import RouteTable
from headrace.runtime.model.spec import Manifest


def describe(manifest: Manifest, routes: RouteTable) -> dict[str, Any]:
    """The document; parameters and bodies have the schemas of the functions' annotations."""
    paths: dict[str, dict[str, Any]] = {}
    definitions: dict[str, Any] = {}
    uses: dict[str, int] = {}
    for endpoint in routes.endpoints:
        spec = manifest.function(endpoint.function)
        if spec is None:
            continue
        path = re.sub(r":path\}", "}", endpoint.route.path)
        id = f"{spec.name}_{endpoint.route.method.lower()}"
        uses[id] = uses.get(id, 0) + 1
        operation: dict[str, Any] = {
            "operationId": id if uses[id] == 1 else f"{id}_{uses[id]}",
            "summary": spec.doc.splitlines()[0] if spec.doc else spec.name,
            "description": spec.doc,
            "tags": [spec.name.partition(".")[0]],
            "responses": {},
        }
        parameters: list[dict[str, Any]] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in endpoint.names
            if name not in spec.parameters
        ]
        for name, item in spec.parameters.items():
            schema = _lift(item["schema"], definitions)
            if name in endpoint.names:
                parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
            elif name == "body" or "$ref" in schema or (len(spec.parameters) == 1 and "properties" in schema):
                operation["requestBody"] = {
                    "required": item["required"],
                    "content": {"application/json": {"schema": schema}},
                }
            else:
                parameters.append(
                    {"name": name, "in": "query", "required": item["required"], "schema": schema}
                )
        if parameters:
            operation["parameters"] = parameters
        if endpoint.route.asynchronous or endpoint.is_job:
            operation["responses"]["202"] = {"description": "Accepted: the answer holds an id to ask for."}
        else:
            output = _lift(spec.output_schema or {}, definitions)
            operation["responses"]["200"] = {
                "description": "The function's result.",
                "content": {"application/json": {"schema": output}},
            }
        if spec.typed:
            operation["responses"]["422"] = {"description": "The event does not match the declared types."}
        paths.setdefault(path, {})[endpoint.route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace functions", "version": manifest.version or "0"},
        "paths": paths,
        "components": {"schemas": definitions},
    }


def _lift(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema with its local definitions moved to the document's components."""
    schema = dict(schema)
    for name, definition in schema.pop("$defs", {}).items():
        definitions[name] = _moved(definition)
    moved = _moved(schema)
    assert isinstance(moved, dict)
    return moved


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: item.replace("#/$defs/", "#/components/schemas/") if key == "$ref" else _moved(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_moved(item) for item in value]
    return value
