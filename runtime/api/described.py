"""Described: what each endpoint of the node's own API takes and answers, for the OpenAPI document.

Imports nothing of Headrace. An endpoint without an entry here is in the document all the same, with what its
table line tells: method, path and scope. Source of the schemas' form: JSON Schema 2020-12, which OpenAPI 3.1
uses.
"""

from typing import Any

import msgspec

Schema = dict[str, Any]


class Operation(msgspec.Struct, frozen=True):
    """One endpoint: `query`, `headers` and `path` by name, `body` as the schema of JSON, or of what `takes`
    names.

    `answers` holds by status what is answered: its schema, None for an answer without a body; in `gives` is
    its media type.
    """

    summary: str
    query: dict[str, Schema] = {}
    headers: dict[str, Schema] = {}
    path: dict[str, Schema] = {}
    body: Schema | None = None
    body_required: bool = False
    takes: tuple[str, ...] = ("application/json",)
    answers: dict[str, Schema | None] = {}
    gives: str = "application/json"


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/headrace.{name}"}


def _object(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": list(required)}


def _closed(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object that takes no other fields: a request's."""
    return {**_object(required, optional), "additionalProperties": False}


def _list(item: Schema) -> Schema:
    return {"type": "array", "items": item}


def _or_null(schema: Schema) -> Schema:
    kind = schema.get("type")
    return {**schema, "type": [kind, "null"]} if isinstance(kind, str) else {"anyOf": [schema, _NULL]}


_NULL: Schema = {"type": "null"}
_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_BOOLEAN: Schema = {"type": "boolean"}
_ANYTHING: Schema = {}
_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
_MOMENT: Schema = {"type": "number", "description": "UTC epoch seconds"}
_WHEN: Schema = {
    "anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0}],
    "description": "ISO 8601, or UTC epoch seconds",
}
_ADDRESS: Schema = {"type": "string", "pattern": "^s3://", "description": "s3://BUCKET/KEY"}
_STATUS: Schema = {"enum": ["waiting", "running", "succeeded", "dead", "cancelled"]}
_JOB_STATUS: Schema = {"enum": ["planning", "running", "reducing", "succeeded", "failed", "cancelled"]}
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
_WAIT: Schema = {"type": "number", "minimum": 0, "exclusiveMaximum": 1e9, "default": 0}
_PAGE: dict[str, Schema] = {
    "limit": _LIMIT,
    "cursor": {
        "type": "string",
        "pattern": "^[0-9a-fA-F]{0,16}$",
        "description": "the last page's next_cursor",
    },
}
_CLOSURE: Schema = {"type": "string", "pattern": "^(function|key):.+$"}
_BYTES: Schema = {"type": "string", "format": "binary"}
_TAGS: Schema = {"anyOf": [_TEXT, _list(_TEXT)]}
_FILTER: dict[str, Schema] = {
    "function": _or_null(_TEXT),
    "code": _or_null(_TEXT),
    "tag": _or_null(_TEXT),
    "since": _or_null(_NUMBER),
    "ids": _or_null(_list(_TEXT)),
    "limit": {"type": "integer", "minimum": 1},
}
_BOOK: dict[str, Schema] = dict.fromkeys(
    ("accepted", "waiting", "running", "succeeded", "dead", "cancelled", "deduplicated"), _COUNT
)


def _items(item: Schema) -> Schema:
    return _object({"items": _list(item), "next_cursor": _or_null(_TEXT)})


def _dead(status: str) -> Schema:
    return _object({"invocation_id": _ID, "status": {"const": status}})


SCHEMAS: dict[str, Schema] = {
    "Error": _object(
        {
            "error": _object(
                {"code": _TEXT, "message": _TEXT, "hint": _TEXT},
                {
                    "invocation_id": _ID,
                    "fields": _list(_object({"loc": _TEXT, "msg": _TEXT}, {"in": _TEXT})),
                    "type": _TEXT,
                    "stack": _TEXT,
                    "signal": _ANYTHING,
                    "exit_code": _ANYTHING,
                },
            )
        }
    ),
    "Accepted": _object({"invocation_id": _ID}, {"status_url": {"type": "string"}}),
    "JobAccepted": _object({"job_id": _ID}),
    "Invocation": _object(
        {
            "invocation_id": _ID,
            "function": _TEXT,
            "status": _STATUS,
            "attempts": _COUNT,
            "accepted_at": _MOMENT,
            "due_at": _MOMENT,
            "started_at": _or_null(_MOMENT),
            "ended_at": _or_null(_MOMENT),
            "result": _ANYTHING,
            "result_ref": _or_null(_ADDRESS),
            "error": _or_null({"type": "object"}),
            "priority": {"type": "integer"},
            "key": _or_null(_TEXT),
            "memory_bytes": _or_null(_COUNT),
            "tags": _list(_TEXT),
            "source": _or_null(_TEXT),
            "job_id": _or_null(_ID),
        },
        {
            "progress": _or_null({"type": "object"}),
            "payload": _ANYTHING,
            "payload_ref": _or_null(_ADDRESS),
            "payload_bytes": _COUNT,
        },
    ),
    "Call": _object(
        {"invocation_id": _ID, "status": _STATUS},
        {"attempts": _COUNT, "result": _ANYTHING, "error": {"type": "object"}},
    ),
    "Function": _object(
        {"name": _TEXT, "kind": {"enum": ["function", "job"]}, "paused": _BOOLEAN, "timeout_s": _NUMBER},
        {"triggers": _list({"type": "object"}), "parameters": {"type": "object"}, "version": _TEXT},
    ),
    "Book": _object({**_BOOK, "throttled": _COUNT, "oldest_waiting_s": _NUMBER, "sync": {"type": "object"}}),
    "Job": _object(
        {
            "job_id": _ID,
            "function": _TEXT,
            "status": _JOB_STATUS,
            "accepted_at": _MOMENT,
            "started_at": _or_null(_MOMENT),
            "ended_at": _or_null(_MOMENT),
            "chunks": _COUNT,
            "done": _COUNT,
            "failed": _COUNT,
            "running": {"type": "integer"},
            "waiting": {"type": "integer"},
            "rate": _NUMBER,
            "eta_s": _or_null(_NUMBER),
            "result": _ANYTHING,
            "error": _or_null({"type": "object"}),
        }
    ),
    "Schedule": _object(
        {"name": _TEXT, "state": _TEXT, "definition": _TEXT, "paused": _BOOLEAN},
        {"function": _or_null(_TEXT), "next": _ANYTHING, "last": _list({"type": "object"})},
    ),
    "Backfill": _object(
        {"id": _ID, "schedule": _TEXT, "status": _TEXT, "from_at": _MOMENT, "until_at": _MOMENT},
        {"concurrency": _COUNT, "instants": _COUNT, "fired": _COUNT, "present": _COUNT},
    ),
    "Object": _object(
        {
            "bucket": _TEXT,
            "key": _TEXT,
            "size": _COUNT,
            "etag": _TEXT,
            "modified_at": _MOMENT,
            "content_type": _or_null(_TEXT),
            "sequencer": _TEXT,
            "version_id": _or_null(_TEXT),
        }
    ),
}
"""Named `headrace.NAME` in the document, so that no user's model can have the same name."""

JOB_INPUT: Schema = {
    "anyOf": [
        _ADDRESS,
        {"type": "array"},
        _object({"object": _ADDRESS}),
        _object({"items": {"type": "array"}}),
    ]
}
"""A job's input: an object's address, or its items."""

_KEY_HEADERS: dict[str, Schema] = {
    "Idempotency-Key": {
        "type": "string",
        "minLength": 1,
        "maxLength": 1000,
        "description": "a repeat gets the first call's outcome, for the seconds in Idempotency-Ttl",
    },
}
KEY_HEADERS = _KEY_HEADERS
"""What every route that is not a job's takes as well."""

_INVOKE_QUERY: dict[str, Schema] = {
    "delay_s": {"type": "number", "minimum": 0, "maximum": 366 * 86_400},
    "priority": {"type": "integer", "minimum": -100, "maximum": 100},
    "tags": {**_TEXT, "description": "separated by commas"},
    "key": {**_TEXT, "description": "the concurrency key"},
}

OPERATIONS: dict[str, Operation] = {
    "POST /v1/functions/{name}/invoke": Operation(
        "Call a function, now or durably with mode=async; delay_s, priority, tags and key need mode=async",
        query={
            "mode": {"enum": ["sync", "async", "stream"], "default": "sync"},
            **_INVOKE_QUERY,
            "idempotency_ttl_s": {"type": "number", "minimum": 1, "maximum": 2_592_000},
        },
        headers=_KEY_HEADERS,
        body=_ANYTHING,
        answers={"200": _ANYTHING, "202": _ref("Accepted")},
        gives="*/*",
    ),
    "POST /v1/functions/{name}/invoke-many": Operation(
        "Accept many events of one function: all or none",
        query=_INVOKE_QUERY,
        body={"type": "array"},
        body_required=True,
        takes=("application/json", "application/x-ndjson"),
        answers={"202": _object({"accepted": _COUNT, "invocation_ids": _list(_ID)})},
    ),
    "GET /v1/invocations": Operation(
        "Invocations, newest first",
        query={"function": _TEXT, "status": _STATUS, "tag": _TEXT, **_PAGE},
        answers={"200": _items(_ref("Invocation"))},
    ),
    "POST /v1/invocations/wait": Operation(
        "Wait until one of many invocations has ended",
        body=_object({"ids": {**_list(_ID), "maxItems": 10_000}}, {"wait_s": _NUMBER}),
        body_required=True,
        answers={"200": _object({"ended": _list(_ref("Call")), "pending": _list(_ID)})},
    ),
    "POST /v1/invocations/cancel": Operation(
        "Cancel all invocations that match; at least one field is needed",
        body={
            **_closed({}, {"function": _or_null(_TEXT), "tag": _or_null(_TEXT), "job": _or_null(_TEXT)}),
            "minProperties": 1,
        },
        body_required=True,
        answers={"202": _object({"cancelled": _COUNT, "stopping": _COUNT})},
    ),
    "GET /v1/invocations/{id}": Operation(
        "One invocation; wait_s waits for its end",
        query={"wait_s": _WAIT, "payload": _BOOLEAN},
        answers={"200": _ref("Invocation")},
    ),
    "GET /v1/invocations/{id}/payload": Operation("The event as it was recorded", answers={"200": _ANYTHING}),
    "GET /v1/invocations/{id}/code": Operation(
        "Which version of the code ran its last attempt",
        answers={"200": _object({"version": _or_null(_TEXT), "kept": _BOOLEAN, "note": _TEXT})},
    ),
    "POST /v1/invocations/{id}/cancel": Operation(
        "Cancel an invocation", answers={"202": _object({"invocation_id": _ID, "cancelling": _BOOLEAN})}
    ),
    "GET /v1/invocations/{id}/logs": Operation(
        "What an invocation printed",
        answers={
            "200": _object(
                {
                    "entries": _list(
                        _object({"attempt": _COUNT, "at": _MOMENT, "outcome": _TEXT, "text": _TEXT})
                    )
                }
            )
        },
    ),
    "GET /v1/calls/{ticket}": Operation(
        "The state of an asynchronous route's call, by the ticket in its status_url; needs no token",
        query={"wait_s": _WAIT},
        answers={"200": _ref("Call")},
    ),
    "GET /v1/logs": Operation(
        "What functions printed, oldest first; after is the next of the answer before",
        query={
            "function": _TEXT,
            "after": {"type": "string", "pattern": "^([0-9]{1,18})?$"},
            "limit": _LIMIT,
            "wait_s": _WAIT,
        },
        answers={"200": _object({"entries": _list({"type": "object"}), "next": _TEXT})},
    ),
    "GET /v1/stats": Operation(
        "Counters of all functions and of each",
        answers={
            "200": _object(
                {
                    "total": {"type": "object"},
                    "functions": {"type": "object", "additionalProperties": _ref("Book")},
                }
            )
        },
    ),
    "GET /v1/verify": Operation(
        "Whether the books balance",
        query={
            "objects": _BOOLEAN,
            "function": _TEXT,
            "limit": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 100},
        },
        answers={"200": _object({"balanced": _BOOLEAN, "problems": _list({"type": "object"})})},
    ),
    "GET /v1/functions": Operation(
        "What is loaded, and what could not be",
        answers={
            "200": _object(
                {
                    "version": _TEXT,
                    "functions": _list(_ref("Function")),
                    "errors": _list({"type": "object"}),
                }
            )
        },
    ),
    "GET /v1/functions/{name}": Operation("One function", answers={"200": _ref("Function")}),
    "POST /v1/functions/{name}/pause": Operation(
        "Begin no more attempts of a function",
        answers={"200": _object({"function": _TEXT, "paused": _BOOLEAN})},
    ),
    "POST /v1/functions/{name}/resume": Operation(
        "Go on with a paused function", answers={"200": _object({"function": _TEXT, "paused": _BOOLEAN})}
    ),
    "GET /v1/closures": Operation(
        "Functions and keys that a function has closed for a time",
        answers={"200": _object({"items": _list(_object({"name": _TEXT, "until_at": _MOMENT}))})},
    ),
    "POST /v1/closures/{name}/open": Operation(
        "End a closure now",
        path={"name": _CLOSURE},
        answers={"200": _object({"name": _TEXT, "open": _BOOLEAN})},
    ),
    "DELETE /v1/closures/{name}": Operation(
        "End a closure now",
        path={"name": _CLOSURE},
        answers={"200": _object({"name": _TEXT, "open": _BOOLEAN})},
    ),
    "GET /v1/dead-letters": Operation(
        "Dead letters, newest first",
        query={
            "function": _TEXT,
            "code": _TEXT,
            "tag": _TEXT,
            "since": {"type": "number", "minimum": 0, "exclusiveMaximum": 1e12},
            **_PAGE,
        },
        answers={"200": _items(_ref("Invocation"))},
    ),
    "POST /v1/dead-letters/redrive": Operation(
        "Run the dead letters again that match",
        body=_closed({}, _FILTER),
        answers={"202": _object({"redriven": _COUNT}, {"skipped": _COUNT})},
    ),
    "GET /v1/dead-letters/{id}": Operation("One dead letter", answers={"200": _ref("Invocation")}),
    "POST /v1/dead-letters/{id}/redrive": Operation(
        "Run a dead letter again, with another payload if one is given",
        body=_closed({}, {"payload": _ANYTHING}),
        answers={"202": _dead("waiting")},
    ),
    "POST /v1/dead-letters/{id}/discard": Operation(
        "Give a dead letter up", answers={"202": _dead("cancelled")}
    ),
    "POST /v1/jobs": Operation(
        "Submit a job",
        body=_closed(
            {"function": _TEXT, "input": JOB_INPUT},
            {"tags": _or_null(_TAGS)},
        ),
        body_required=True,
        answers={"202": _ref("JobAccepted")},
    ),
    "GET /v1/jobs": Operation(
        "Jobs, newest first",
        query={"function": _TEXT, "status": _JOB_STATUS, **_PAGE},
        answers={"200": _items(_ref("Job"))},
    ),
    "GET /v1/jobs/{id}": Operation(
        "One job; wait_s waits for its end", query={"wait_s": _WAIT}, answers={"200": _ref("Job")}
    ),
    "GET /v1/jobs/{id}/chunks": Operation(
        "A job's chunks; stage 0 is the map, 1 and up the reduce",
        query={
            "status": _STATUS,
            "stage": _COUNT,
            "limit": _LIMIT,
            "cursor": {"type": "string", "pattern": "^([0-9]{1,18})?$"},
        },
        answers={"200": _items(_ref("Invocation"))},
    ),
    "GET /v1/jobs/{id}/events": Operation(
        "A job's progress as server-sent events", answers={"200": {}}, gives="text/event-stream"
    ),
    "POST /v1/jobs/{id}/cancel": Operation("Cancel a job", answers={"202": _ref("Job")}),
    "POST /v1/jobs/{id}/redrive": Operation("Run again what failed of a job", answers={"202": _ref("Job")}),
    "GET /v1/buckets": Operation(
        "The buckets that there are", answers={"200": _object({"buckets": _list(_TEXT)})}
    ),
    "PUT /v1/buckets/{bucket}": Operation(
        "Make a bucket; one that is there is left as it is", answers={"201": _object({"bucket": _TEXT})}
    ),
    "GET /v1/objects/{bucket}": Operation(
        "Objects in the order of their keys",
        query={"prefix": _TEXT, "cursor": _TEXT, "limit": _LIMIT},
        answers={"200": _items(_ref("Object"))},
    ),
    "GET /v1/objects/{bucket}/{key}": Operation(
        "An object's bytes",
        headers={"Range": {"type": "string", "description": "one range of bytes"}},
        answers={"200": _BYTES, "206": _BYTES},
        gives="*/*",
    ),
    "HEAD /v1/objects/{bucket}/{key}": Operation("An object's size, type and ETag", answers={"200": None}),
    "PUT /v1/objects/{bucket}/{key}": Operation(
        "Write an object; it appears when it is whole",
        headers={"If-Match": _TEXT, "If-None-Match": {"const": "*"}},
        body=_BYTES,
        takes=("application/octet-stream",),
        answers={"201": _ref("Object")},
    ),
    "DELETE /v1/objects/{bucket}/{key}": Operation(
        "Remove an object; an absent one is no error", answers={"204": None}
    ),
    "GET /v1/schedules": Operation(
        "The schedules that the node knows",
        query={"limit": _LIMIT, "cursor": _TEXT},
        answers={"200": _items(_ref("Schedule"))},
    ),
    "GET /v1/schedules/{name}": Operation(
        "One schedule, with its last fires", query={"limit": _LIMIT}, answers={"200": _ref("Schedule")}
    ),
    "GET /v1/schedules/{name}/next": Operation(
        "When a schedule is due next",
        query={"limit": {**_LIMIT, "default": 5}, "after": _WHEN},
        answers={"200": _object({"schedule": _TEXT, "items": {"type": "array"}})},
    ),
    "GET /v1/schedules/{name}/fires": Operation(
        "When a schedule fired",
        query={"after": _WHEN, "until": _WHEN, "limit": _LIMIT},
        answers={"200": _object({"schedule": _TEXT, "items": _list({"type": "object"})})},
    ),
    "POST /v1/schedules/{name}/pause": Operation(
        "Pause a schedule", answers={"200": _object({"schedule": _TEXT, "paused": _BOOLEAN})}
    ),
    "POST /v1/schedules/{name}/resume": Operation(
        "Go on with a paused schedule", answers={"200": _object({"schedule": _TEXT, "paused": _BOOLEAN})}
    ),
    "POST /v1/schedules/{name}/run": Operation(
        "Fire a schedule now, or for one of its instants",
        body=_closed({}, {"due": _or_null(_WHEN), "again": _BOOLEAN}),
        answers={
            "202": _object({"schedule": _TEXT, "due_at": _MOMENT}, {"invocation_id": _ID, "job_id": _ID})
        },
    ),
    "POST /v1/schedules/{name}/backfill": Operation(
        "Fire the instants of a range that have not fired; 200 answers a dry_run",
        body=_closed(
            {"from": _WHEN},
            {
                "until": _or_null(_WHEN),
                "concurrency": {"type": "integer", "minimum": 1},
                "again": _BOOLEAN,
                "dry_run": _BOOLEAN,
            },
        ),
        body_required=True,
        answers={"200": {"type": "object"}, "202": _ref("Backfill")},
    ),
    "GET /v1/backfills": Operation(
        "Backfills, newest first",
        query={"schedule": _TEXT, **_PAGE},
        answers={"200": _items(_ref("Backfill"))},
    ),
    "GET /v1/backfills/{id}": Operation("One backfill", answers={"200": _ref("Backfill")}),
    "POST /v1/backfills/{id}/cancel": Operation(
        "End a backfill, and what of it runs with running",
        body=_closed({}, {"running": _BOOLEAN}),
        answers={"202": _ref("Backfill")},
    ),
    "GET /v1/buckets/{bucket}/connect": Operation(
        "Whether a bucket's notifications reach this node", answers={"200": {"type": "object"}}
    ),
    "POST /v1/buckets/{bucket}/connect": Operation(
        "Let a bucket's notifications reach this node, and prove it",
        body=_closed(
            {},
            {
                "url": _TEXT,
                "targets": {**_list(_TEXT), "minItems": 2, "maxItems": 2},
                "removals": _BOOLEAN,
                "wait_s": _NUMBER,
            },
        ),
        answers={"200": {"type": "object"}},
    ),
    "DELETE /v1/buckets/{bucket}/connect": Operation(
        "Take a bucket's notifications from this node away", answers={"200": {"type": "object"}}
    ),
    "POST /v1/events/minio": Operation(
        "Take an object store's notifications",
        body=_object({"Records": _list({"type": "object"})}),
        answers={"200": {}},
    ),
    "GET /v1/why/{id}": Operation(
        "What holds an invocation, a job, a schedule or a function",
        answers={"200": _object({"kind": _TEXT, "state": _TEXT, "held_by": _list({"type": "object"})})},
    ),
    "GET /v1/code/{version}": Operation(
        "A kept version of the code", answers={"200": _BYTES}, gives="application/zip"
    ),
    "GET /v1/node": Operation("The node's id, load and database", answers={"200": _object({"node": _TEXT})}),
    "GET /healthz": Operation(
        "Whether the process serves", answers={"200": _object({"status": {"const": "ok"}})}
    ),
    "GET /readyz": Operation(
        "Whether functions are served",
        answers={
            "200": _object({"status": {"const": "ready"}}),
            "503": _object({"status": {"const": "not ready"}, "reason": _TEXT}),
        },
    ),
    "GET /openapi.json": Operation("This document", answers={"200": _object({"openapi": _TEXT})}),
    "GET /docs": Operation("This document for people", answers={"200": _TEXT}, gives="text/html"),
    "GET /metrics": Operation("Prometheus text", answers={"200": _TEXT}, gives="text/plain"),
}

FAST = {
    "POST /v1/events/minio": "events",
    "POST /v1/functions/{name}/invoke": "invoke",
    "POST /v1/functions/{name}/invoke-many": "invoke",
    "GET /healthz": "",
    "GET /readyz": "",
    "GET /openapi.json": "",
    "GET /docs": "",
    "GET /metrics": "read",
}
"""What is served before the table of `/v1`, and the scope that it needs."""
