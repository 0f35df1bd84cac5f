"""The OpenAPI document: users' routes, made from what their functions declare, and the node's own API.

Imports this room and the floor. Source of the form: OpenAPI Specification 3.1.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from headrace.runtime.api.described import FAST, JOB_INPUT, KEY_HEADERS, OPERATIONS, SCHEMAS, Operation
from headrace.runtime.api.routing import Endpoint as UserEndpoint
from headrace.runtime.api.routing import RouteTable
from headrace.runtime.model.spec import FunctionSpec, Manifest

_PARAMETER = re.compile(r"\{([^}:]+)(?::path)?\}")
_NAME = re.compile(r"[^A-Za-z0-9._-]")
_VALUES = frozenset({"default", "const", "enum", "examples", "example"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "dependentSchemas"})
_BUCKET = "^[a-z0-9]([.]?[a-z0-9]|-+[a-z0-9])*$"
_PATHS = {"bucket": {"type": "string", "pattern": _BUCKET, "minLength": 3, "maxLength": 63}}
_OWN = "headrace"
"""The tag, and the beginning of the names, of what is the node's."""


def describe(
    manifest: Manifest, routes: RouteTable, table: Iterable[tuple[str, str, str]] = ()
) -> dict[str, Any]:
    """The document. `table` is the node's own API as method, path and scope of each endpoint."""
    schemas: dict[str, Any] = {f"{_OWN}.{name}": schema for name, schema in SCHEMAS.items()}
    paths = _Paths()
    functions = {spec.name: spec for spec in manifest.functions}
    for endpoint in routes.endpoints:
        spec = functions.get(endpoint.function)
        if spec is not None:
            operation = _user_operation(endpoint, spec, _Schemas(schemas))
            paths.add(endpoint.route.method, endpoint.route.path, operation)
    own = [
        *((*key.split(" ", 1), scope) for key, scope in FAST.items()),
        *table,
    ]
    for method, path, scope in own:
        key = f"{method} {_template(path)}"
        paths.add(method, path, _own_operation(key, scope, OPERATIONS.get(key)))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Headrace", "version": manifest.version or "0"},
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "paths": paths.items,
        "components": {
            "schemas": schemas,
            "responses": {
                "headrace.Error": {
                    "description": "It failed; `code` says how.",
                    "content": {"application/json": {"schema": _error()}},
                }
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The token in DATA/token, or a configured one.",
                },
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


class _Paths:
    """The document's paths. Two templates that differ in the names of their parameters only are one path to
    OpenAPI: the second takes over the names of the first.
    """

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self._shapes: dict[str, str] = {}
        self._ids: dict[str, int] = {}

    def add(self, method: str, path: str, operation: dict[str, Any]) -> None:
        template = _template(path)
        known = self._shapes.setdefault(_PARAMETER.sub("{}", path), template)
        if known != template:
            renamed = dict(zip(_PARAMETER.findall(template), _PARAMETER.findall(known), strict=True))
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["name"] = renamed[parameter["name"]]
        item = self.items.setdefault(known, {})
        if method.lower() in item:  # `{rest:path}` beside `{id}`: callers of one segment get the other
            return
        id = operation["operationId"]
        self._ids[id] = self._ids.get(id, 0) + 1
        if self._ids[id] > 1:
            operation["operationId"] = f"{id}_{self._ids[id]}"
        item[method.lower()] = operation


# ---- the node's own ----


def _own_operation(key: str, scope: str, about: Operation | None) -> dict[str, Any]:
    method, _, path = key.partition(" ")
    about = about or Operation(f"{method} {path}")
    words = "_".join(re.findall(r"[a-z0-9]+", path))
    operation: dict[str, Any] = {
        "operationId": f"{_OWN}_{method.lower()}_{words}",
        "summary": about.summary,
        "tags": [_OWN],
        "security": [{"token": []}] if scope else [],
    }
    if scope:
        operation["description"] = f"Scope `{scope}`."
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": about.path.get(name) or _PATHS.get(name) or {"type": "string"},
        }
        for name in _PARAMETER.findall(path)
    ]
    for place, given in (("query", about.query), ("header", about.headers)):
        parameters += [{"name": name, "in": place, "schema": schema} for name, schema in given.items()]
    if parameters:
        operation["parameters"] = parameters
    if about.body is not None:
        operation["requestBody"] = {
            "required": about.body_required,
            "content": {kind: {"schema": about.body} for kind in about.takes},
        }
    operation["responses"] = {
        status: _response("Done.", schema, about.gives)
        for status, schema in (about.answers or {"2XX": {}}).items()
    }
    operation["responses"]["default"] = {"$ref": "#/components/responses/headrace.Error"}
    return operation


def _response(description: str, schema: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    response: dict[str, Any] = {"description": description}
    if schema is not None:
        response["content"] = {kind: {"schema": schema}}
    return response


def _error() -> dict[str, Any]:
    return {"$ref": "#/components/schemas/headrace.Error"}


# ---- users' routes ----

_KEY_FAILURES = {"401": "No valid key came with the call.", "403": "The key does not allow this call."}
_FAILURES = {
    "400": "The request's form is wrong.",
    "413": "The body is too large.",
    "429": "No worker was free in time; `Retry-After` says when to try again.",
    "500": "The function failed.",
    "503": "The node is stopping, or cannot record the call.",
    "504": "The function ran longer than its timeout.",
}


def _user_operation(endpoint: UserEndpoint, spec: FunctionSpec, schemas: "_Schemas") -> dict[str, Any]:
    route = endpoint.route
    operation: dict[str, Any] = {
        "operationId": _NAME.sub("_", f"{spec.name}_{route.method.lower()}"),
        "summary": spec.doc.splitlines()[0] if spec.doc else spec.name,
        "tags": [spec.name.partition(".")[0]],
        "security": [{"key": []}, {"token": []}] if endpoint.rules.scope is not None else [],
    }
    if spec.doc:
        operation["description"] = spec.doc
    parameters: list[dict[str, Any]] = []
    body: dict[str, Any] | None = None
    placed = set()
    for name, item in spec.parameters.items():
        if item.get("event"):
            continue
        schema = schemas.lift(item["schema"])
        if item.get("whole") or (name == "body" and name not in endpoint.names):
            body = {"required": item["required"], "content": _contents(endpoint, schema)}
        elif name in endpoint.names:
            placed.add(name)
            parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
        else:
            shown = {**schema, "default": item["default"]} if "default" in item else schema
            parameters.append({"name": name, "in": "query", "required": item["required"], "schema": shown})
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in endpoint.names
        if name not in placed
    ]
    if endpoint.is_job:
        named = {"type": "object", "properties": {"input": JOB_INPUT}, "required": ["input"]}
        job_input = {"anyOf": [*JOB_INPUT["anyOf"], named]}
        body = {"required": True, "content": {"application/json": {"schema": job_input}}}
    else:
        parameters += [
            {"name": name, "in": "header", "schema": schema} for name, schema in KEY_HEADERS.items()
        ]
    if endpoint.rules.callback:
        about = "Told of the end by a POST, signed as Standard Webhooks says."
        url = {"type": "string", "format": "uri", "maxLength": 2048, "description": about}
        parameters.append({"name": "Headrace-Callback", "in": "header", "schema": url})
    if parameters:
        operation["parameters"] = parameters
    if body is not None and route.method not in ("GET", "HEAD"):
        operation["requestBody"] = body
    operation["responses"] = _user_responses(endpoint, spec, schemas)
    return operation


def _user_responses(endpoint: UserEndpoint, spec: FunctionSpec, schemas: "_Schemas") -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if endpoint.is_job or endpoint.route.asynchronous:
        name = "JobAccepted" if endpoint.is_job else "Accepted"
        schema = {"$ref": f"#/components/schemas/headrace.{name}"}
        told = "Accepted: the answer holds an id to ask for."
        responses["202"] = _response(told, schema, "application/json")
    elif endpoint.route.method == "HEAD":
        responses["200"] = {"description": "The function's answer, without its body."}
    elif spec.streams:
        told = "What the function streams; gathered into a list for a call with an Idempotency-Key."
        responses["200"] = _response(told, {}, spec.streams)
        responses["200"]["content"].setdefault("application/json", {"schema": {"type": "array"}})
    elif spec.output_schema is not None:
        schema = schemas.lift(spec.output_schema)
        responses["200"] = _response("The function's result.", schema, "application/json")
    else:
        responses["200"] = _response("The function's result.", {}, "*/*")
    if endpoint.rules.etag and endpoint.route.method == "GET" and "200" in responses:
        responses["304"] = {"description": "The caller has it: `If-None-Match` names its ETag."}
    failures: Mapping[str, str] = _FAILURES
    if endpoint.rules.scope is not None:
        failures = {**failures, **_KEY_FAILURES}
    if endpoint.accepts is not None:
        failures = {**failures, "415": "The body's type is not taken."}
    if spec.typed:
        failures = {**failures, "422": "The call does not match the declared types; `fields` says where."}
    for status, told in sorted(failures.items()):
        responses[status] = _response(told, _error(), "application/json")
    responses["default"] = {"description": "What the function answers by itself."}
    return responses


def _contents(endpoint: UserEndpoint, schema: dict[str, Any]) -> dict[str, Any]:
    """The media types of a body of this schema. Models are taken from forms too; they are described as JSON,
    since a form holds no more than texts.
    """
    if endpoint.rules.accepts is not None:
        return {kind: {"schema": schema} for kind in endpoint.rules.accepts}
    if not schema:
        return {"application/json": {"schema": {}}, "*/*": {"schema": {}}}
    if schema.get("type") == "string":
        kind = "application/octet-stream" if schema.get("format") == "binary" else "text/plain"
        return {kind: {"schema": schema}}
    if endpoint.accepts is not None and "application/json" not in endpoint.accepts:
        return {kind: {"schema": schema} for kind in endpoint.accepts}
    return {"application/json": {"schema": schema}}


class _Schemas:
    """Moves a function's schemas into the document's components, under names that no other model has."""

    def __init__(self, components: dict[str, Any]) -> None:
        self._components = components

    def lift(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """The schema, with references to the components instead of definitions of its own."""
        schema = dict(schema)
        definitions: dict[str, Any] = schema.pop("$defs", {})
        names = {name: self._free(name, definitions) for name in definitions}
        for name, definition in definitions.items():
            self._components[names[name]] = _moved(definition, names)
        moved: dict[str, Any] = _moved(schema, names)
        return moved

    def _free(self, name: str, definitions: Mapping[str, Any]) -> str:
        """The name under which a definition is, or may be put."""
        plain = _NAME.sub("_", name)
        free, count = plain, 1
        same = {other: other for other in definitions}
        while free in self._components and self._components[free] != _moved(definitions[name], same):
            count += 1
            free = f"{plain}_{count}"
        return free


def _moved(schema: Any, names: Mapping[str, str]) -> Any:
    """The schema with references to the components, by the names that its definitions have there."""
    if isinstance(schema, list):
        return [_moved(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    out = {}
    for key, value in schema.items():
        if key in _VALUES:
            out[key] = value
        elif key == "$ref" and isinstance(value, str):
            out[key] = _target(value, names)
        elif key == "discriminator" and isinstance(value, dict):
            mapping = {tag: _target(ref, names) for tag, ref in value.get("mapping", {}).items()}
            out[key] = {**value, "mapping": mapping} if mapping else value
        elif key in _NAMED and isinstance(value, dict):
            out[key] = {name: _moved(item, names) for name, item in value.items()}
        else:
            out[key] = _moved(value, names)
    return out


def _target(reference: str, names: Mapping[str, str]) -> str:
    name = reference.removeprefix("#/$defs/")
    return f"#/components/schemas/{names.get(name, name)}" if name != reference else reference


def _template(path: str) -> str:
    """A route's path as OpenAPI writes it."""
    return _PARAMETER.sub(r"{\1}", path)
