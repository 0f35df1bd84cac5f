"""Job handles: a submitted job, its progress and its end.

Imports the client's own values. The job is the node's; a handle holds its id only, and may be dropped or made
again.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from headrace.runtime.client.answer import segment
from headrace.runtime.errors import JobFailed

if TYPE_CHECKING:
    from headrace.runtime.client.client import Client

ENDED = ("succeeded", "failed", "cancelled")
POLL_FIRST_S = 0.02
POLL_LAST_S = 0.5


class JobHandle:
    """A job by its id."""

    def __init__(self, client: "Client", id: str) -> None:
        self._client = client
        self.id = id

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    def status(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """What the node knows of the job: `status, chunks, done, failed, running, waiting, rate, eta_s, …`.
        With `wait_s` the answer comes when the job has ended, or after so many seconds. Raises UnknownJob.
        """
        query = {"wait_s": f"{wait_s:g}"} if wait_s > 0 else None
        found: dict[str, Any] = self._client.call("GET", self._path, query=query)
        return found

    def progress(self, *, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """The job's status as it changes, the last one being its end. Raises WaitTimeout after
        `timeout_s`.
        """
        left = self._client.deadline(timeout_s, f"job {self.id}")
        last: dict[str, Any] = {}
        pause_s = 0.0
        while True:
            found = self.status(wait_s=min(pause_s, left()))
            if found != last:
                yield found
                last = found
            if found["status"] in ENDED:
                return
            pause_s = min(pause_s * 1.5 or POLL_FIRST_S, POLL_LAST_S)

    def wait(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return the job's status when it has ended, however it did. Raises WaitTimeout after `timeout_s`."""
        found: dict[str, Any] = {}
        for found in self.progress(timeout_s=timeout_s):  # noqa: B007 - the last one is what is wanted
            pass
        return found

    def result(self, timeout_s: float | None = None) -> Any:
        """The job's result, when it has ended. Raises JobFailed when it failed or was cancelled,
        WaitTimeout.
        """
        found = self.wait(timeout_s)
        if found["status"] == "succeeded":
            if found.get("result") is None and found.get("result_ref") and found.get("output"):
                # A large result is not part of the record; it lies where the job writes all of its results.
                return json.loads(self._client.get_object(f"{found['output'].rstrip('/')}/result.json"))
            return found.get("result")
        error = found.get("error") or {}
        message = str(
            error.get("message") or f"{found.get('failed', 0)} of {found.get('chunks', 0)} chunks failed"
        )
        raise JobFailed(
            f"job {self.id} {'was cancelled' if found['status'] == 'cancelled' else 'failed'}: {message}",
            {**error, "code": "job_failed", "job_id": self.id},
        )

    def chunks(self, *, status: str | None = None) -> Iterator[dict[str, Any]]:
        """The job's chunks, in order, with their attempts and durations."""
        return self._client._pages(f"{self._path}/chunks", {"status": status}, None)

    def cancel(self) -> dict[str, Any]:
        """Cancel the job: running chunks are ended, waiting ones never run. Raises WrongState when it has
        ended.
        """
        return self._client._post(f"{self._path}/cancel")

    def redrive(self) -> dict[str, Any]:
        """Run again what failed, and only that. Raises WrongState when the job goes on or succeeded."""
        return self._client._post(f"{self._path}/redrive")

    @property
    def _path(self) -> str:
        return f"/v1/jobs/{segment(self.id)}"
