"""Signatures: what proves to an S3 server that a request comes from who holds the secret key.

Imports nothing of ours; pure. Source: "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API
Reference. What one would get wrong: S3 encodes a path once, where other AWS services encode it twice, and
nothing in a path is normalised.
"""

import functools
import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()


class Credentials(msgspec.Struct, frozen=True):
    """Who asks. `session_token` comes with keys that were lent for a time."""

    access_key: str
    secret_key: str
    session_token: str | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.access_key!r}, …)"


def encode_path(path: str) -> str:
    """A path as it travels and is signed: all but letters, digits, `-._~` and `/` as %XX of UTF-8."""
    return quote(path, safe="/-._~")


def encode_query(query: Mapping[str, str]) -> str:
    """A query as it travels and is signed: sorted, every name with an `=`."""
    pairs = ((quote(name, safe="-._~"), quote(value, safe="-._~")) for name, value in query.items())
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def sign(
    credentials: Credentials,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    payload_hash: str,
    region: str,
    at: float,
) -> dict[str, str]:
    """The headers to add to a request.

    Args:
        path: as from `encode_path`.
        query: as from `encode_query`.
        headers: all that are to be signed, `host` among them; names in lower case.
        payload_hash: SHA-256 of the body in hexadecimal, or UNSIGNED.
        at: UTC epoch seconds.
    """
    date = _date(at)
    added = {"x-amz-date": date, "x-amz-content-sha256": payload_hash}
    if credentials.session_token:
        added["x-amz-security-token"] = credentials.session_token
    signed = sorted({**headers, **added}.items())
    names = ";".join(name for name, _ in signed)
    canonical = "\n".join(
        (
            method,
            path,
            query,
            *(f"{name}:{' '.join(text.split())}" for name, text in signed),
            "",
            names,
            payload_hash,
        )
    )
    signature = _signature(credentials, date, region, canonical)
    added["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{_scope(date, region)}, SignedHeaders={names},"
        f" Signature={signature}"
    )
    return added


def presign(
    credentials: Credentials,
    *,
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    expires_s: int,
    region: str,
    at: float,
) -> str:
    """The query of a link that needs no other proof until `expires_s` seconds after `at`.

    `host` is what the Host header of who follows it will be.
    """
    date = _date(at)
    whole = {
        **query,
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{_scope(date, region)}",
        "X-Amz-Date": date,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": "host",
    }
    if credentials.session_token:
        whole["X-Amz-Security-Token"] = credentials.session_token
    text = encode_query(whole)
    canonical = "\n".join((method, path, text, f"host:{host}", "", "host", UNSIGNED))
    return f"{text}&X-Amz-Signature={_signature(credentials, date, region, canonical)}"


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")


def _scope(date: str, region: str) -> str:
    return f"{date[:8]}/{region}/s3/aws4_request"


def _signature(credentials: Credentials, date: str, region: str, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"{ALGORITHM}\n{date}\n{_scope(date, region)}\n{digest}"
    return hmac.new(
        _day_key(credentials.secret_key, date[:8], region), text.encode(), hashlib.sha256
    ).hexdigest()


@functools.lru_cache(maxsize=16)
def _day_key(secret: str, day: str, region: str) -> bytes:
    key = b"AWS4" + secret.encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
