"""Opening: what a node takes hold of as it starts: a port, a folder, a database, its tokens.

Imports the floor, the settings, the stores and, for tokens, the API's.
"""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.runtime.clock import Clock
from headrace.runtime.errors import InvalidSettings, PortInUse, ReadOnlyStorage, StorageFull
from headrace.runtime.settings import Settings
from headrace.runtime.store.protocol import Store
from headrace.runtime.store.sqlite import SqliteStore


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortInUse, or InvalidSettings for an address that is not this machine's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno in (98, 48):
            raise PortInUse(host, port) from None
        raise InvalidSettings(
            f"cannot listen on {host}:{port}: {error.strerror}", "Check --host and --port."
        ) from None
    listener.setblocking(False)
    return listener


def make_folder(path: Path) -> None:
    """Make the data folder, unless it is there. Raises InvalidSettings, StorageFull, ReadOnlyStorage."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InvalidSettings(f"{path} is not a folder", "Name another with --data.") from None
    except OSError as error:
        if error.errno == 28:
            raise StorageFull(str(path)) from None
        raise ReadOnlyStorage(str(path)) from None


def open_store_of(store: str, clock: Clock) -> Store:
    """The store behind a setting: a SQLite file, or a PostgreSQL database. Raises InvalidSettings."""
    kind, mark, _ = store.partition("://")
    if not mark:
        return SqliteStore(Path(store), clock=clock)
    if kind not in ("postgresql", "postgres"):
        raise InvalidSettings(
            f"the store {kind}:// is not supported", "Give the path of a SQLite file, or postgresql://…"
        )
    try:
        from headrace.runtime.store.postgres.store import PostgresStore
    except ImportError as error:
        raise InvalidSettings(
            f"PostgreSQL needs a package that is not installed ({error})", "pip install 'headrace[postgres]'"
        ) from None
    return PostgresStore(store, clock=clock)


def tokens_of(settings: Settings, own_secret: str) -> list[Any]:
    """The configured tokens, or the one in DATA/token, which the first start writes; and one with this
    process's own secret. Raises ReadOnlyStorage, InvalidSettings.
    """
    from headrace.runtime.api.access import SCOPES, Token

    own = Token("node", own_secret, SCOPES)
    if settings.tokens:
        return [
            own,
            *(Token(t.name, t.secret.get_secret_value(), t.scopes) for t in settings.tokens),
        ]
    path = settings.data / "token"
    try:
        if not path.exists():
            _write_secret(path, secrets.token_urlsafe(32) + "\n")
        text = path.read_text().strip()
    except OSError as error:
        raise ReadOnlyStorage(str(path)) from error
    if not text:
        raise InvalidSettings(f"{path} is empty", "Remove it: the next start writes a new token.")
    return [own, Token("data", text, SCOPES)]


def events_token_of(settings: Settings) -> str:
    """The secret for an object store: of a token that may do nothing else, if there is one; empty where
    none can be named, because the settings hold their hashes only.
    """
    able = [
        token
        for token in settings.tokens
        if token.scopes & {"events", "admin"} and not token.secret.get_secret_value().startswith("sha256:")
    ]
    if able:
        least = min(able, key=lambda token: ("admin" in token.scopes, len(token.scopes)))
        return least.secret.get_secret_value()
    return (settings.data / "token").read_text().strip() if not settings.tokens else ""


def _write_secret(path: Path, text: str) -> None:
    """Write a small file that only its owner may read; after a power cut it is there whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _server_class() -> type[Any]:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's server, without its own signal handlers: the node has them."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server


def server(config: Any) -> Any:
    """A server of HTTP, of uvicorn's configuration."""
    return _server_class()(config)
