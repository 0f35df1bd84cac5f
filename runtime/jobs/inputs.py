"""Inputs: what a job is given, looked at before it is accepted.

Imports the floor and the object store's protocol.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from headrace.runtime.errors import InvalidFunction
from headrace.runtime.model.spec import FunctionSpec
from headrace.runtime.objects.protocol import ObjectStore
from headrace.runtime.objects.url import parse_object_url


class Inputs:
    """Checks inputs against the object store."""

    def __init__(self, objects: ObjectStore, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._objects = objects
        self._in_thread = in_thread

    async def checked(self, function: str, spec: FunctionSpec, given: Mapping[str, Any]) -> dict[str, Any]:
        """The input as it is recorded: the object must be there, and its ETag is kept. The output's bucket is
        made.
        """
        assert spec.job is not None
        if spec.job.output:
            bucket = spec.job.output.partition("/")[0]
            await self._in_thread(self._objects.make_bucket, bucket)
        if "object" in given:
            bucket, key = parse_object_url(str(given["object"]))
            info = await self._in_thread(self._objects.head, bucket, key)
            return {"object": f"s3://{bucket}/{key}", "etag": info.etag, "size": info.size}
        if "objects" in given:
            return await self._listed(function, spec, given["objects"])
        if spec.job.split.get("kind") != "items":
            raise InvalidFunction(
                function, "takes an object as input", "Submit it with --input s3://BUCKET/KEY."
            )
        if not isinstance(given.get("items"), list):
            raise InvalidFunction(function, "takes items or an object as input", 'Send {"items": […]}.')
        return {"items": given["items"]}

    async def _listed(self, function: str, spec: FunctionSpec, given: Any) -> dict[str, Any]:
        """The input of a job over several objects, which are pinned to their ETags: a list of
        `{"bucket", "key", "etag", "size"}`, or the address of an object that holds one. A job over items has
        them as its items.
        """
        assert spec.job is not None
        of_items = spec.job.split.get("kind") == "items"
        if isinstance(given, str):
            bucket, key = parse_object_url(given)
            info = await self._in_thread(self._objects.head, bucket, key)
            address = f"s3://{bucket}/{key}"
            if of_items:
                return {"object": address, "etag": info.etag, "size": info.size}
            return {"objects": address, "etag": info.etag}
        if not isinstance(given, list) or not all(isinstance(one, Mapping) and "key" in one for one in given):
            raise InvalidFunction(
                function, "takes objects as a list of their buckets and keys", 'Send {"objects": […]}.'
            )
        return {"items": given} if of_items else {"objects": given}
