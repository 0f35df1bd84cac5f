"""Binding: how an event's parts become a function's arguments.

Imports the floor only; pydantic is imported when a function's annotations ask for it. The rules, in order:

- a parameter named `context` gets the Context, one named `event` the whole event;
- a sole other parameter annotated with an event class or a model gets the validated event;
- all others bind by name: for an HTTP event from the path, then the query, with `body` the parsed body;
  otherwise from the
  payload's keys. A sole parameter also takes a payload that is not an object as it is.
"""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from headrace.runtime.errors import InvalidEvent, InvalidFunction
from headrace.runtime.model.event import Event, HttpEvent, ScheduleEvent, UploadEvent, UploadSetEvent
from headrace.runtime.model.form import FORM_TYPES, InvalidForm, read_form
from headrace.runtime.model.stream import Stream, content_type_of

Entry = Callable[[Any, Any], Any]
_SIMPLE = (str, int, float, bool)
_DEPTH_MAX = 20


def is_http(payload: Any) -> bool:
    """True for an event of API Gateway's payload format 2.0."""
    return isinstance(payload, dict) and payload.get("version") == "2.0" and "requestContext" in payload


def as_event(payload: Any) -> Any:
    """The payload with the typed helpers of its kind; anything that is not an object stays as it is."""
    if not isinstance(payload, dict):
        return payload
    if "Records" in payload:
        return UploadEvent(payload)
    if is_http(payload):
        return HttpEvent(payload)
    if payload.get("source") == "headrace.schedule":
        return ScheduleEvent(payload)
    if payload.get("source") == "headrace.uploadset":
        return UploadSetEvent(payload)
    return Event(payload)


class Signature:
    """What a function takes, read once when it is declared.

    Raises InvalidFunction for parameters that an event cannot fill.
    """

    def __init__(self, function: Callable[..., Any], *, name: str, first_is_chunk: bool = False) -> None:
        self.function = function
        self.name = name
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:
            raise InvalidFunction(
                name, f"its signature cannot be read: {error}", "Register a plain function."
            ) from None
        hints = _hints(function)
        if first_is_chunk:
            if not parameters:
                raise InvalidFunction(
                    name, "a job's function takes the chunk as its first parameter", "Write def f(chunk): …"
                )
            parameters = parameters[1:]
        self.names: list[str] = []
        self.types: dict[str, Any] = {}
        self.defaults: dict[str, Any] = {}
        self.keywords: set[str] = set()
        for parameter in parameters:
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise InvalidFunction(
                    name, f"*{parameter.name} cannot be filled from an event", "Name the parameters."
                )
            if parameter.kind is parameter.VAR_KEYWORD:
                raise InvalidFunction(
                    name,
                    f"**{parameter.name} cannot be filled from an event",
                    "Take `event`, which holds all of it.",
                )
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise InvalidFunction(
                    name,
                    f"{parameter.name!r} is positional-only, and events fill parameters by name",
                    "Remove the /.",
                )
            self.names.append(parameter.name)
            if parameter.kind is parameter.KEYWORD_ONLY:
                self.keywords.add(parameter.name)
            if parameter.name in hints:
                self.types[parameter.name] = hints[parameter.name]
            if parameter.default is not parameter.empty:
                self.defaults[parameter.name] = parameter.default
        self.returns = hints.get("return")
        self.bound = [item for item in self.names if item not in ("context", "event")]
        for item in self.bound:
            if item in self.defaults:
                _check_default(name, item, self.defaults[item])
        if first_is_chunk and self.bound:
            raise InvalidFunction(
                name,
                f"a job's function takes (chunk) or (chunk, context), not {self.bound[0]!r}",
                "Remove the parameter.",
            )
        self.event_type = self.types.get("event")
        sole = self.bound[0] if len(self.bound) == 1 and "event" not in self.names else None
        self.sole = sole
        annotation = self.types.get(sole) if sole else None
        self.whole = (
            sole if annotation is not None and (_is_event(annotation) or _is_model(annotation)) else None
        )

    @property
    def typed(self) -> bool:
        """True when an event has to be validated against declared types."""
        wanted = [self.types[name] for name in self.bound if name in self.types]
        if self.event_type is not None and not _is_event(self.event_type):
            return True
        return any(not _is_event(annotation) and annotation is not Any for annotation in wanted)

    def entry(self) -> Entry:
        """A callable of (payload, context) that binds and calls the function."""
        function, names = self.function, self.names
        if not self.typed and not self.keywords:
            if not names:
                return lambda payload, context: function()
            if names == ["event"] and self.event_type in (None, Any):
                return lambda payload, context: function(as_event(payload))
            if names == ["context"]:
                return lambda payload, context: function(context)
            if names == ["event", "context"] and self.event_type in (None, Any):
                return lambda payload, context: function(as_event(payload), context)
            if names == [self.sole] and self.whole is None:
                sole, default = names[0], self.defaults
                arguments = self.arguments

                def call_sole(payload: Any, context: Any) -> Any:
                    if not isinstance(payload, dict):
                        return function() if payload is None and sole in default else function(payload)
                    return function(**arguments(payload, context))

                return call_sole
        arguments = self.arguments
        return lambda payload, context: function(**arguments(payload, context))

    def arguments(self, payload: Any, context: Any) -> dict[str, Any]:
        """The arguments for one event. Raises InvalidEvent naming each field that does not fit."""
        values: dict[str, Any] = {}
        wrong: list[dict[str, str]] = []
        if "context" in self.names:
            values["context"] = context
        if "event" in self.names:
            values["event"] = self._convert("event", payload, (), wrong)
        if self.whole is not None:
            whole = payload
            if is_http(payload) and not _is_event(self.types[self.whole]):
                whole = _body(payload, wrong, self._lists(self.whole))
            if not wrong:
                values[self.whole] = self._convert(self.whole, whole, (), wrong)
        elif self.bound:
            found = self._parts(payload, wrong)
            for name in self.bound:
                if any(item["loc"] == name for item in wrong):
                    continue
                if name in found:
                    values[name] = self._convert(name, found[name], (name,), wrong)
                elif name not in self.defaults:
                    wrong.append({"loc": name, "msg": "is missing"})
        if wrong:
            raise InvalidEvent(self.name, _placed(payload, wrong, self.whole) if is_http(payload) else wrong)
        return values

    def _parts(self, payload: Any, wrong: list[dict[str, str]]) -> Mapping[str, Any]:
        if is_http(payload):
            found: dict[str, Any] = {}
            found.update(payload.get("queryStringParameters") or {})
            lists = [name for name in found if name in self.types and self._is_list(name)]
            if lists:  # the event joins what occurs several times by commas
                pairs = parse_qsl(payload.get("rawQueryString") or "", keep_blank_values=True)
                found.update({name: [value for key, value in pairs if key == name] for name in lists})
            found.update(payload.get("pathParameters") or {})
            if "body" in self.bound and payload.get("body") is not None:
                found["body"] = _body(payload, wrong, self._lists("body"))
            return found
        if isinstance(payload, dict):
            return payload
        if self.sole is not None:
            return {self.sole: payload} if payload is not None or self.sole not in self.defaults else {}
        if payload is None:
            return {}
        wrong.append(
            {
                "loc": "event",
                "msg": f"is {_kind(payload)}; an object with {', '.join(self.bound)} is expected",
            }
        )
        return {}

    def _convert(self, name: str, value: Any, where: tuple[str, ...], wrong: list[dict[str, str]]) -> Any:
        annotation = self.types.get(name)
        if annotation is None or annotation is Any:
            return as_event(value) if name == "event" else value
        if _is_event(annotation):
            if not isinstance(value, dict):
                wrong.append(
                    {"loc": ".".join(where) or "event", "msg": f"is {_kind(value)}; an object is expected"}
                )
                return None
            return annotation(value)
        adapter = self._adapter(name)
        from pydantic import ValidationError

        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            for item in error.errors(include_url=False, include_context=False, include_input=False):
                place = ".".join([*where, *(str(part) for part in item["loc"])])
                wrong.append({"loc": place or "event", "msg": item["msg"]})
            return None

    def _schema(self, name: str) -> dict[str, Any]:
        """The JSON Schema of a parameter, empty where there is none."""
        schemas: dict[str, dict[str, Any]] = self.__dict__.setdefault("_schemas", {})
        found = schemas.get(name)
        if found is None:
            annotation = self.types.get(name)
            found = {}
            if annotation is not None and annotation is not Any and not _is_event(annotation):
                try:
                    found = self._adapter(name).json_schema()
                except Exception:  # a type that validates but has no schema may be anything
                    found = {}
            schemas[name] = found
        return found

    def _is_list(self, name: str) -> bool:
        """Whether a parameter may be a list."""
        schema = self._schema(name)
        return _may_be_list(schema, schema.get("$defs", {}))

    def _lists(self, name: str) -> frozenset[str]:
        """The fields of a model, or of each of several, that are lists."""
        schema = self._schema(name)
        definitions = schema.get("$defs", {})
        return frozenset(
            field
            for one in _alternatives(schema, definitions)
            for field, item in one.get("properties", {}).items()
            if _may_be_list(item, definitions)
        )

    def _adapter(self, name: str) -> Any:
        adapters: dict[str, Any] = self.__dict__.setdefault("_adapters", {})
        adapter = adapters.get(name)
        if adapter is None:
            from pydantic import TypeAdapter

            adapter = adapters[name] = TypeAdapter(self.types[name])
        return adapter

    def prepare(self) -> None:
        """Build the validators now, so that a wrong annotation shows when the code is loaded. Raises
        InvalidFunction.
        """
        if not self.typed:
            return
        for name in [*self.bound, "event"]:
            annotation = self.types.get(name)
            if annotation is None or annotation is Any or _is_event(annotation):
                continue
            try:
                self._adapter(name)
            except Exception as error:  # pydantic raises many classes for an annotation that it cannot use
                raise InvalidFunction(
                    self.name,
                    f"the annotation of {name!r} cannot be validated: {error}".splitlines()[0],
                    "Use builtin types, dataclasses or pydantic models.",
                ) from error

    def describe(self, http_parameters: list[str] | None = None) -> dict[str, Any]:
        """JSON Schemas by parameter, for documentation; with an empty schema where nothing is declared.

        `whole` marks the parameter that gets the body as a whole, `event` one that gets the event.
        """
        out: dict[str, Any] = {}
        for name in self.bound:
            annotation = self.types.get(name)
            out[name] = {"schema": self._schema(name), "required": name not in self.defaults}
            if annotation is not None and _is_event(annotation):
                out[name]["event"] = True
            elif name == self.whole:
                out[name]["whole"] = True
            if self.defaults.get(name) is not None and not hasattr(self.defaults[name], "model_dump"):
                out[name]["default"] = self.defaults[name]
        return out

    @property
    def streams(self) -> str:
        """The media type of what the function streams, as far as its declaration tells; empty when it is no
        generator and declares no `Stream`.
        """
        if not inspect.isgeneratorfunction(self.function) and not inspect.isasyncgenfunction(self.function):
            return "*/*" if self.returns is Stream else ""
        items = typing.get_args(self.returns)
        kind = (typing.get_origin(items[0]) or items[0]) if items else None
        if not isinstance(kind, type) or kind in (Any, object, types.UnionType):
            return "*/*"
        return content_type_of(kind)

    def returns_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of what the function returns, None when it is not declared."""
        if self.streams or self.returns is None or self.returns is Any or self.returns is type(None):
            return None
        from pydantic import TypeAdapter

        try:
            return TypeAdapter(self.returns).json_schema()
        except Exception:  # documentation only: a return type without a schema is left out
            return None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    annotations = getattr(function, "__annotations__", None)
    if not annotations:
        return {}
    if not any(isinstance(value, str) for value in annotations.values()):
        return dict(annotations)
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # any name in an annotation may fail in any way
        raise InvalidFunction(
            getattr(function, "__qualname__", "function"),
            f"an annotation cannot be read: {error}",
            "Import the annotation's names where the function is defined.",
        ) from error


def _is_event(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Event)


def _is_model(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _is_model(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(_is_model(item) for item in typing.get_args(annotation))
    if not isinstance(annotation, type):
        return False
    return (
        hasattr(annotation, "model_fields")
        or hasattr(annotation, "__dataclass_fields__")
        or hasattr(annotation, "__required_keys__")  # a TypedDict, whichever module's
    )


def _check_default(function: str, name: str, value: Any) -> None:
    if hasattr(value, "model_dump"):
        return
    try:
        msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError):
        raise InvalidFunction(
            function,
            f"the default of {name!r} is a {type(value).__name__}, which JSON cannot hold",
            "Use None as the default and make the value inside the function.",
        ) from None


def _body(payload: dict[str, Any], wrong: list[dict[str, str]], lists: frozenset[str]) -> Any:
    """What the body of an HTTP call says, by its content type; `lists` are the fields that are lists."""
    event = HttpEvent(payload)
    content_type = event.headers.get("content-type", "application/json")
    kind = content_type.split(";")[0].strip().lower()
    if payload.get("body") is None:
        wrong.append({"loc": "body", "msg": "is missing"})
        return None
    if kind == "application/json" or kind.endswith("+json"):
        try:
            return msgspec.json.decode(event.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            wrong.append({"loc": "body", "msg": f"is not valid JSON: {error}"})
            return None
    if kind in FORM_TYPES:
        try:
            return read_form(event.body, content_type, lists=lists)
        except InvalidForm as error:
            wrong.append({"loc": "body", "msg": f"cannot be read: {error}"})
            return None
    if not kind.startswith("text/"):
        return event.body
    try:
        return event.body.decode()
    except UnicodeDecodeError:
        wrong.append({"loc": "body", "msg": "is not UTF-8"})
        return None


def _placed(payload: dict[str, Any], wrong: list[dict[str, str]], whole: str | None) -> list[dict[str, str]]:
    """What is wrong with an HTTP call, with the part of the call that each was looked for in; what is in the
    body has a place that begins with `body`, whatever the function calls it.
    """
    path = payload.get("pathParameters") or {}
    for item in wrong:
        name = item["loc"].partition(".")[0]
        if whole is not None or name == "body":
            item["in"] = "body"
            if name != "body":
                item["loc"] = "body" if item["loc"] == "event" else f"body.{item['loc']}"
        else:
            item["in"] = "path" if name in path else "query"
    return wrong


def _alternatives(
    schema: dict[str, Any], definitions: dict[str, Any], depth: int = 0
) -> list[dict[str, Any]]:
    """The schemas that a value may have, references followed."""
    if depth > _DEPTH_MAX:
        return []
    if "$ref" in schema:
        target = definitions.get(str(schema["$ref"]).rpartition("/")[2], {})
        return _alternatives(target, definitions, depth + 1)
    several = [one for key in ("anyOf", "oneOf", "allOf") for one in schema.get(key, ())]
    if several:
        return [found for one in several for found in _alternatives(one, definitions, depth + 1)]
    return [schema]


def _may_be_list(schema: dict[str, Any], definitions: dict[str, Any]) -> bool:
    return any(one.get("type") == "array" for one in _alternatives(schema, definitions))


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}.get(
        type(value), "a value"
    )
