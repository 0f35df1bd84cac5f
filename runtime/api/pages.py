"""Pages: the API's description for people, one file without any outside asset.

Imports this room. The page's policy lets it run its own script only, by hash, and speak to this node only.
"""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from headrace.runtime.api.answers import Headers

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


@cache
def docs_page() -> tuple[bytes, Headers]:
    """The page at `/docs`, and its headers."""
    page = Path(__file__).with_name("docs.html").read_bytes()
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in _SCRIPT.findall(page)
    )
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return page, [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
