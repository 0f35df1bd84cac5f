"""Finding the node: its address and the token to show, from what surrounds the caller.

Imports the error tree only. Order: the argument, HEADRACE_URL, DATA/node.json, http://127.0.0.1:8080; and for
the token the argument, HEADRACE_TOKEN, DATA/token. DATA is HEADRACE_DATA, what headrace.toml says, or ./data.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8080"


class Found(NamedTuple):
    """A node's address, the token to show (None for none), and where the address came from."""

    url: str
    token: str | None
    source: str


def data_folder() -> Path:
    """The folder where a node that was started here keeps what it needs."""
    named = os.environ.get("HEADRACE_DATA")
    if named:
        return Path(named)
    config = Path(os.environ.get("HEADRACE_CONFIG") or "headrace.toml")
    if config.is_file():
        import tomllib

        try:
            place = tomllib.loads(config.read_text(encoding="utf-8")).get("data")
        except (OSError, ValueError):
            place = None  # whoever starts a node is told about it; a client asks nothing else of the file
        if isinstance(place, str):
            return config.parent / place
    return Path("data")


def find_node(url: str | None = None, *, token: str | None = None, data: Path | None = None) -> Found:
    """Where the node is. Reads files only; whether it answers shows at the first call.

    A token from DATA is shown to that data's own node and to this machine only, so that a URL given by hand
    does not send it to a stranger.
    """
    data = data or data_folder()
    node: dict[str, Any] = {}
    try:
        node = json.loads((data / "node.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        node = {}  # no node has started here, or it is just writing: the default address is as good a guess
    if url:
        found, source = url, "--url"
    elif os.environ.get("HEADRACE_URL"):
        found, source = os.environ["HEADRACE_URL"], "HEADRACE_URL"
    elif isinstance(node.get("url"), str):
        found, source = node["url"], str(data / "node.json")
    else:
        found, source = DEFAULT_URL, "default"
    token = token or os.environ.get("HEADRACE_TOKEN")
    if not token and (found.rstrip("/") == str(node.get("url", "")).rstrip("/") or _local(found)):
        token = _read_token(data, node)
    return Found(found, token or None, source)


def _read_token(data: Path, node: dict[str, Any]) -> str | None:
    named = node.get("token_file")
    for path in [data / named] if isinstance(named, str) and named else [data / "token"]:
        try:
            return path.read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            continue  # not there, or another user's: the node says what is missing
    return None


def _local(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    return host in ("localhost", "::1") or host.startswith("127.")
