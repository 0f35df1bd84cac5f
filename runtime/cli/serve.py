"""`headrace serve` and `headrace dev`: run a node. Imports the node when it runs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from headrace.runtime.cli.options import Config
from headrace.runtime.errors import BadRequest

Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PATHS]...",
        help="Files and folders of functions; ./functions when not given.",
        show_default=False,
    ),
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Folder for what the node keeps; ./data.")
]
Store = Annotated[str | None, typer.Option("--store", metavar="PLACE", help="SQLite file or postgresql://…")]
Objects = Annotated[
    str | None, typer.Option("--objects", metavar="PLACE", help="Folder of buckets or s3://HOST:PORT")
]
Host = Annotated[str | None, typer.Option("--host", help="Address to listen on; 127.0.0.1.")]
Port = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on; 8080. 0 for any free one.")
]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Worker processes; one per core.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]
LogFormat = Annotated[str | None, typer.Option("--log-format", help="auto, human or json.")]


def serve(
    paths: Paths = None,
    data: Data = None,
    store: Store = None,
    objects: Objects = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    config: Config = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Run a node that serves the functions in files and folders.

    Settings come from headrace.toml, then HEADRACE_* variables, then these options; `headrace config` shows
    them. SIGTERM and Ctrl-C stop the node without loss.
    """
    flags = {
        "data": data, "store": store, "objects": objects, "host": host, "port": port, "workers": workers,
        "log_level": log_level, "log_format": log_format,
    }  # fmt: skip
    return _serve(paths, flags, config, dev=False)


def dev(
    paths: Paths = None,
    data: Data = None,
    store: Store = None,
    objects: Objects = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    config: Config = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> int:
    """Serve with reload, printing each invocation's log lines as they come.

    Otherwise as `headrace serve`: a change of a file is loaded at once, and what runs meanwhile ends with the
    code that it began with.
    """
    flags = {
        "data": data, "store": store, "objects": objects, "host": host, "port": port, "workers": workers,
        "log_level": log_level, "log_format": log_format,
    }  # fmt: skip
    return _serve(paths, flags, config, dev=True)


def _serve(paths: list[str] | None, flags: Mapping[str, object], config: Path | None, *, dev: bool) -> int:
    from headrace.runtime.settings import load_settings

    settings = load_settings(flags, config=config)
    settings.check_exposure()
    from headrace.runtime.code import is_path
    from headrace.runtime.serve import serve as serve_node

    for path in paths or ():
        if is_path(path) and not Path(path).exists():
            raise BadRequest(f"there is nothing at {path}", "Name files or folders of functions.")
    code: int = serve_node(settings, paths or (["functions"] if Path("functions").is_dir() else []), dev=dev)
    return code
