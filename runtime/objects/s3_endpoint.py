"""S3Endpoint: where an S3 server is, as `s3://HOST:PORT?tls=&region=` says it.

Imports the floor and this room. Credentials are never part of the URL, so that it can be shown and logged.
"""

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlsplit

import msgspec

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.objects.s3_signature import Credentials

_EXAMPLE = "Give s3://HOST:PORT?tls=false&region=us-east-1, or s3:// for AWS."
_PUBLIC = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")
_TRUTHS = {"": True, "1": True, "true": True, "yes": True, "on": True}
_TRUTHS |= {"0": False, "false": False, "no": False, "off": False}


class S3Endpoint(msgspec.Struct, frozen=True):
    """One server. `host` has the port unless it is the scheme's own, as a Host header has it. `reached_at` is
    where others reach it, if elsewhere: `http://HOST:PORT` or `https://HOST:PORT`.
    """

    host: str
    tls: bool
    region: str
    reached_at: str = ""

    @property
    def aws(self) -> bool:
        """Whether this is Amazon S3 itself."""
        return self.host.endswith((".amazonaws.com", ".amazonaws.com.cn"))

    @property
    def base(self) -> str:
        """The URL that paths are appended to."""
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def public(self) -> str:
        """The URL that links begin with."""
        return self.reached_at or self.base


def parse_endpoint(url: str, *, environ: Mapping[str, str] | None = None) -> S3Endpoint:
    """The server that `s3://HOST:PORT?tls=&region=&public=` names; `s3://` alone is AWS.

    Without `tls`, port 443 and AWS mean TLS and all else does not. Without `region`, AWS_REGION, then
    AWS_DEFAULT_REGION, then us-east-1. `public` is the URL at which those reach it who get links.

    Raises: InvalidSettings.
    """
    environ = os.environ if environ is None else environ
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as error:
        raise InvalidSettings(f"{_shown(url)} is no object server's URL: {error}", _EXAMPLE) from error
    if parts.scheme.lower() != "s3":
        raise InvalidSettings(f"{_shown(url)} does not begin with s3://", _EXAMPLE)
    if parts.username is not None or parts.password is not None:
        why = (
            "An URL is shown and logged: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment."
        )
        raise InvalidSettings(f"the URL of the object server {host!r} holds credentials", why)
    if parts.path not in ("", "/") or parts.fragment:
        raise InvalidSettings(f"{url} names more than a server", f"Buckets are named elsewhere. {_EXAMPLE}")
    unknown = sorted(options.keys() - {"tls", "region", "public"})
    if unknown:
        raise InvalidSettings(
            f"{url} has an unknown option {unknown[0]!r}", "Known are tls, region and public."
        )
    public = options.get("public", "").rstrip("/")
    if public and not _PUBLIC.fullmatch(public):
        raise InvalidSettings(f"public is http://HOST:PORT or https://HOST, not {public!r}", _EXAMPLE)
    region = options.get("region") or environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    region = region or "us-east-1"
    if "tls" in options and options["tls"].lower() not in _TRUTHS:
        raise InvalidSettings(f"tls is true or false, not {options['tls']!r}", _EXAMPLE)
    if not host:
        if port is not None:
            raise InvalidSettings(f"{url} has a port without a host", _EXAMPLE)
        host = f"s3.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
        tls = _TRUTHS[options.get("tls", "true").lower()]
    else:
        tls = _TRUTHS[options["tls"].lower()] if "tls" in options else port == 443
    if ":" in host:
        host = f"[{host}]"
    if port is not None and port != (443 if tls else 80):
        host = f"{host}:{port}"
    return S3Endpoint(host, tls, region, public)


def credentials_from(environ: Mapping[str, str] | None = None) -> Credentials:
    """AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.

    Raises: InvalidSettings if one of the first two is missing.
    """
    environ = os.environ if environ is None else environ
    access, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        missing = " and ".join(
            name
            for name, given in (("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret))
            if not given
        )
        raise InvalidSettings(
            f"an object server needs credentials, and {missing} is not set",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment of the node.",
        )
    return Credentials(access, secret, environ.get("AWS_SESSION_TOKEN") or None)


def _shown(url: str) -> str:
    # What could not be parsed may still hold a password before an @.
    return f"s3://…@{url.rpartition('@')[2]}" if "@" in url else url
