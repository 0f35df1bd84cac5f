"""S3Connection: signed requests to one S3 server, tried again while that can help.

Imports the floor and this room. One holds a pool of sockets for each process it is used in: a fork leaves the
parent's sockets alone, and a pickle carries none. Answers with 5xx or 429 and broken connections are tried
again with growing, jittered pauses; `Answer.retried` tells whether that happened, because the request before
may have been carried out.
"""

import hashlib
import os
import threading
from collections.abc import Mapping
from typing import Any, cast
from xml.etree import ElementTree

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError
from urllib3.util import Retry, Timeout

from headrace.runtime.clock import Clock
from headrace.runtime.objects.s3_endpoint import S3Endpoint
from headrace.runtime.objects.s3_errors import ObjectServerRefuses, ObjectServerUnavailable
from headrace.runtime.objects.s3_signature import (
    EMPTY,
    UNSIGNED,
    Credentials,
    encode_path,
    encode_query,
    presign,
    sign,
)

RETRIES = 8
_RETRIES_OF_THE_AWAY = 1
_CONNECTIONS = 16
_PAUSE_S = 0.1
_PAUSE_S_MAX = 4.0
_CONNECT_S = 5.0
SILENCE_S = 60.0
_ANSWER_BYTES_MAX = 16 << 20
_OVERLOADED = (429, 500, 502, 503, 504)

Body = bytes | bytearray | memoryview


class Answer(msgspec.Struct, frozen=True):
    """What the server said.

    Attributes:
        headers: by any letter case.
        data: the body, empty when it was left for `stream`.
        code: the S3 error code; empty for success, and where the server names none.
        message: the server's words for an error.
        retried: whether an earlier try of this request may have been carried out.
        stream: the unread body of a successful `open`.
    """

    status: int
    headers: Mapping[str, str]
    data: bytes
    code: str
    message: str
    retried: bool
    stream: urllib3.BaseHTTPResponse | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class S3Connection:
    """A way to one server, safe in any thread and carried over forks and pickles.

    Args:
        retries: how often a request is tried again before ObjectServerUnavailable.
        silence_s: seconds for which a server may say nothing in an answer.
        patient: whether a request is tried so often also after another one was given up. Where few threads
            serve many callers, a server that is away would otherwise hold all of them.

    `ahead_s` is by how much the server's clock was found to be ahead of `clock`, 0 while it is near enough.
    """

    def __init__(
        self,
        endpoint: S3Endpoint,
        credentials: Credentials,
        *,
        clock: Clock,
        retries: int = RETRIES,
        silence_s: float = SILENCE_S,
        patient: bool = True,
    ) -> None:
        self.endpoint = endpoint
        self._credentials = credentials
        self._clock = clock
        self._retries = retries
        self._silence_s = silence_s
        self._patient = patient
        self._begin()

    def _begin(self) -> None:
        self._process = 0
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._parents: list[urllib3.HTTPConnectionPool] = []
        self.ahead_s = 0.0
        self._away = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        kept = ("endpoint", "_credentials", "_clock", "_retries", "_silence_s", "_patient")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Body = b"",
    ) -> Answer:
        """Send a request and read its answer, whatever its status.

        Args:
            path: begins with a slash and is not encoded.
            headers: names in lower case.

        Raises: ObjectServerUnavailable when no try was answered, or all with 5xx or 429; ObjectServerRefuses
            when the server does not accept the credentials.
        """
        return self._send(method, path, query or {}, headers or {}, body, stream=False)

    def open(
        self, path: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`request` with GET that leaves a success's body in `Answer.stream`, for the caller to close."""
        return self._send("GET", path, query or {}, headers or {}, b"", stream=True)

    def close(self) -> None:
        """Close this process's idle sockets; the next request opens others."""
        if self._process == os.getpid() and self._pool is not None:
            self._pool.close()
            self._pool = None

    def link(self, method: str, path: str, *, query: Mapping[str, str], expires_s: int) -> str:
        """A URL that lets anybody who has it send this request for `expires_s` seconds."""
        encoded = encode_path(path)
        signed = presign(
            self._credentials,
            method=method,
            host=self.endpoint.public.partition("://")[2],
            path=encoded,
            query=query,
            expires_s=expires_s,
            region=self.endpoint.region,
            at=self._clock.now() + self.ahead_s,
        )
        return f"{self.endpoint.public}{encoded}?{signed}"

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body,
        *,
        stream: bool,
    ) -> Answer:
        answer = self._send_once(method, path, query, headers, body, stream=stream)
        if answer.status == 403 and answer.code == "RequestTimeTooSkewed" and "date" in answer.headers:
            # A node whose clock is wrong is not one without rights: sign by the server's clock from now on.
            self.ahead_s = _http_date(answer.headers["date"]) - self._clock.now()
            answer = self._send_once(method, path, query, headers, body, stream=stream)
        if answer.status in _OVERLOADED:
            self._away = not self._patient
            why = answer.message or answer.code or f"it answers with {answer.status}"
            raise ObjectServerUnavailable(self.endpoint.base, why)
        self._away = False
        if answer.status in (301, 401, 403) or answer.code in _REFUSALS:
            raise ObjectServerRefuses(self.endpoint.base, f"{method} {path}", _why_refused(answer))
        return answer

    def _send_once(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body,
        *,
        stream: bool,
    ) -> Answer:
        encoded, text = encode_path(path), encode_query(query)
        own = {"host": self.endpoint.host, **headers}
        if not body:
            digest = EMPTY
        else:
            # Under TLS nobody on the way can change a body, so hashing it would only cost time.
            digest = UNSIGNED if self.endpoint.tls else hashlib.sha256(body).hexdigest()
        own.update(
            sign(
                self._credentials,
                method=method,
                path=encoded,
                query=text,
                headers=own,
                payload_hash=digest,
                region=self.endpoint.region,
                at=self._clock.now() + self.ahead_s,
            )
        )
        try:
            response = self._connections().urlopen(
                method,
                f"{encoded}?{text}" if text else encoded,
                body=_sendable(body) if body or method in ("PUT", "POST") else None,
                headers=own,
                retries=_Retries(min(self._retries, _RETRIES_OF_THE_AWAY) if self._away else self._retries),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            retried = response.retries is not None and bool(response.retries.history)
            if stream and 200 <= response.status < 300:
                return Answer(response.status, response.headers, b"", "", "", retried, response)
            data = response.read(_ANSWER_BYTES_MAX, decode_content=False)
            response.drain_conn()
        except HTTPError as error:
            self._away = not self._patient
            raise ObjectServerUnavailable(self.endpoint.base, _why(error)) from error
        # A multipart upload may fail after its 200 was sent: then the body is an error.
        failed = response.status >= 300 or (data.startswith(b"<?xml") and b"<Error>" in data[:200])
        code, message = _error_of(data) if failed else ("", "")
        status = 500 if failed and response.status < 300 else response.status
        return Answer(status, response.headers, data, code, message, retried)

    def _connections(self) -> urllib3.HTTPConnectionPool:
        if self._process == os.getpid() and self._pool is not None:
            return self._pool
        if self._process != os.getpid():
            # Forked: the lock may have been held by a thread that is not here, and so may those in the pool.
            # Keeping the old one alive means that nothing ever closes it.
            if self._pool is not None:
                self._parents.append(self._pool)
            self._pool, self._lock, self._process = None, threading.Lock(), os.getpid()
        with self._lock:
            if self._pool is None:
                self._pool = urllib3.connection_from_url(
                    self.endpoint.base,
                    maxsize=_CONNECTIONS,
                    timeout=Timeout(connect=_CONNECT_S, read=self._silence_s),
                )
            return self._pool


class _Retries(Retry):
    """When to try again: broken connections and answers that say "too much"; a long Retry-After is cut."""

    def __init__(self, total: int = RETRIES, **options: Any) -> None:
        options.setdefault("redirect", 0)
        options.setdefault("status_forcelist", _OVERLOADED)
        options.setdefault("allowed_methods", None)
        options.setdefault("raise_on_status", False)
        options.setdefault("backoff_factor", _PAUSE_S)
        options.setdefault("backoff_max", _PAUSE_S_MAX)
        options.setdefault("backoff_jitter", _PAUSE_S)
        super().__init__(total, **options)

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, _PAUSE_S_MAX)


_REFUSALS = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed",
     "PermanentRedirect", "IllegalLocationConstraintException", "XAdminUserNotFound"}
)  # fmt: skip


def _sendable(body: Body) -> bytes:
    # Whatever has a buffer is sent as it is, though urllib3 only promises to take bytes.
    return cast(bytes, body)


def _why_refused(answer: Answer) -> str:
    region = answer.headers.get("x-amz-bucket-region")
    words = answer.message or answer.code or f"status {answer.status}"
    return f"{words} (the bucket is in {region}: add ?region={region})" if region else words


def _why(error: HTTPError) -> str:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    return str(reason) if reason is not None else type(error).__name__


def _error_of(data: bytes) -> tuple[str, str]:
    try:
        found = {child.tag.rpartition("}")[2]: child.text or "" for child in ElementTree.fromstring(data)}
    except ElementTree.ParseError:
        return "", data[:200].decode("utf-8", "replace")
    return found.get("Code", ""), found.get("Message", "")


def _http_date(text: str) -> float:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text).timestamp()
