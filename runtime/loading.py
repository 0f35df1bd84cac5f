"""Loading: the user's files, folders and modules, imported in the process that workers are forked from.

Imports `app` and the floor. One broken file does not stop the others: what is wrong with it becomes a
LoadError in the manifest, with the file and the line.
"""

import base64
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from headrace.runtime.app import App
from headrace.runtime.binding import Signature
from headrace.runtime.code import SKIPPED_FOLDERS, CodeRequest, find_module, is_path
from headrace.runtime.errors import HeadraceError
from headrace.runtime.model.destination import DELIVER, deliver_spec, kind_of
from headrace.runtime.model.policy import RetryPolicy
from headrace.runtime.model.spec import VALIDATE, FunctionSpec, LoadError, Manifest

VALIDATE_S = 5.0


class Loaded:
    """What was imported: the manifest, and what runs each function."""

    def __init__(self, manifest: Manifest, entries: Mapping[str, Callable[[Any, Any], Any]]) -> None:
        self.manifest = manifest
        self.entries = entries


def load(argument: bytes) -> Loaded:
    """Import what `argument` (from `request_for` or `request_for_app`) names. Never raises for what user code
    does.
    """
    wanted = msgspec.json.decode(argument, type=CodeRequest)
    for entry in wanted.sys_path:
        if entry not in sys.path:
            sys.path.append(entry)
    errors: list[LoadError] = []
    apps: list[tuple[App, str]] = []
    digest = hashlib.sha256()
    if wanted.pickled:
        blob = base64.b64decode(wanted.pickled)
        digest.update(blob)
        try:
            apps.append((importlib.import_module("cloudpickle").loads(blob), ""))
        except Exception as error:  # unpickling imports the user's modules, which may fail in any way
            errors.append(_load_error(error, "<app>", ""))
    for path in wanted.paths:
        _digest_code(digest, path)
        for file in _files(path, errors):
            apps.extend(_import(file, errors))
    _digest_environment(digest)
    return assemble(apps, version=digest.hexdigest()[:16], defaults=wanted.defaults, errors=errors)


def assemble(
    apps: Iterable[tuple[App, str]],
    *,
    version: str,
    defaults: Mapping[str, Any],
    errors: Sequence[LoadError] = (),
) -> Loaded:
    """What these apps declare together, each given with its file; what is wrong is added to `errors`.

    `defaults` stand in for settings that a function leaves open.
    """
    found = list(errors)
    specs: dict[str, FunctionSpec] = {}
    entries: dict[str, Callable[[Any, Any], Any]] = {}
    unique: dict[int, tuple[App, str]] = {}
    for app, file in apps:  # several files may import one app
        unique.setdefault(id(app), (app, file))
    for app, file in unique.values():
        for name, declared in app.declared.items():
            spec = declared.spec
            if name in specs:
                other = specs[name]
                found.append(
                    LoadError(
                        file=spec.file or file,
                        line=spec.line,
                        message=f"the name {name} is taken by {other.file}:{other.line}",
                        hint="Give one of the two apps, or one of the functions, another name.",
                    )
                )
                continue
            specs[name] = _with_defaults(spec, defaults)
            entries[name] = declared.entry
    specs = _check_destinations(specs, found)
    signatures = {
        name: declared.signature for app, _ in unique.values() for name, declared in app.declared.items()
    }
    _add_builtin(specs, entries, signatures)
    starts = {app.start for app, _ in unique.values() if app.start}
    return Loaded(
        Manifest(
            version=version,
            functions=tuple(specs.values()),
            errors=tuple(found),
            start="spawn" if "spawn" in starts else "fork",
            why="an app asks for it" if "spawn" in starts else "",
        ),
        entries,
    )


def _files(path: str, errors: list[LoadError]) -> Iterator[str]:
    place = Path(path)
    if place.is_dir():
        if str(place) not in sys.path:
            sys.path.append(str(place))  # behind all else: a file of the user's may be called json.py
        found = False
        for folder, names, files in os.walk(place):
            names[:] = sorted(n for n in names if n not in SKIPPED_FOLDERS and not n.startswith((".", "_")))
            for file in sorted(files):
                if file.endswith(".py") and not file.startswith(("_", ".")):
                    found = True
                    yield str(Path(folder) / file)
        if not found:
            errors.append(
                LoadError(
                    file=path, line=0, message="holds no Python files", hint="Put your functions there."
                )
            )
    elif place.is_file():
        if str(place.parent) not in sys.path:
            sys.path.append(str(place.parent))
        yield str(place)
    elif is_path(path):
        errors.append(
            LoadError(file=path, line=0, message="does not exist", hint="Check the path's spelling.")
        )
    elif find_module(path) is None:
        errors.append(
            LoadError(
                file=path,
                line=0,
                message="is neither a file, a folder nor a module that can be imported",
                hint="Check its spelling, and that it is installed in this environment.",
            )
        )
    else:
        yield path


def _digest_code(digest: Any, path: str) -> None:
    """Add the code at a path: all Python files of a folder, also those that are only imported by others."""
    place = Path(path)
    files: list[Path] = []
    if place.is_dir():
        for folder, names, found in os.walk(place):
            names[:] = sorted(n for n in names if n not in SKIPPED_FOLDERS and not n.startswith("."))
            files += [Path(folder) / file for file in sorted(found) if file.endswith(".py")]
    elif place.is_file():
        files, place = [place], place.parent
    elif not is_path(path) and (spec := find_module(path)) is not None and spec.origin:
        files, place = [Path(spec.origin)], Path(spec.origin).parent
    for file in files:
        try:
            content = file.read_bytes()
        except OSError:  # the import says what is wrong with it
            continue
        digest.update(f"{file.relative_to(place)}\0{len(content)}\0".encode() + content)


def _import(file: str, errors: list[LoadError]) -> list[tuple[App, str]]:
    before = {id(app) for app in _apps_of(sys.modules.get(file)) if not file.endswith(".py")}
    try:
        module = _import_file(file) if file.endswith(".py") else importlib.import_module(file)
    except BaseException as error:  # importing user code may raise anything, SystemExit included
        if isinstance(error, KeyboardInterrupt):
            raise
        errors.append(_load_error(error, file, ""))
        return []
    return [(app, file) for app in _apps_of(module) if id(app) not in before]


def _import_file(file: str) -> ModuleType:
    place = Path(file)
    name = re.sub(r"\W", "_", place.stem)
    known = sys.modules.get(name)
    if known is not None:
        if getattr(known, "__file__", None) == file:
            return known
        name = f"{name}_{hashlib.sha256(file.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _apps_of(module: ModuleType | None) -> list[App]:
    if module is None:
        return []
    found: dict[int, App] = {}
    for value in vars(module).values():
        if isinstance(value, App):
            found[id(value)] = value
    return list(found.values())


def _load_error(error: BaseException, file: str, hint: str) -> LoadError:
    """Where in the user's own file it went wrong, in one line."""
    line = 0
    if isinstance(error, SyntaxError) and error.filename:
        file, line = error.filename, error.lineno or 0
        return LoadError(
            file=file,
            line=line,
            message=f"{type(error).__name__}: {error.msg}",
            hint="Mend the syntax and save.",
        )
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file:
            line = frame.lineno or 0
    if isinstance(error, HeadraceError):
        return LoadError(file=file, line=line, message=str(error), hint=error.hint)
    message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    if isinstance(error, ModuleNotFoundError) and error.name:
        top = error.name.split(".")[0]
        near = difflib.get_close_matches(top, sys.stdlib_module_names, 1)
        hint = (
            f"Install {top} in this environment."
            if not near
            else f"Install {top}, or did you mean {near[0]}?"
        )
    return LoadError(file=file, line=line, message=message, hint=hint)


def _with_defaults(spec: FunctionSpec, defaults: Mapping[str, Any]) -> FunctionSpec:
    plain = FunctionSpec(name="", module="", file="", line=0)
    changed = {key: value for key, value in defaults.items() if getattr(spec, key) == getattr(plain, key)}
    if "retry" in changed:
        changed["retry"] = RetryPolicy(**changed["retry"])
    return msgspec.structs.replace(spec, **changed) if changed else spec


def _check_destinations(specs: dict[str, FunctionSpec], errors: list[LoadError]) -> dict[str, FunctionSpec]:
    out = {}
    for name, spec in specs.items():
        for setting in ("on_failure", "on_success"):
            target = getattr(spec, setting)
            if target is None or kind_of(target) != "function":
                continue
            found = specs.get(target)
            if found is not None and found.job is None:
                continue
            near = difflib.get_close_matches(target, specs, 1)
            hint = f"Did you mean {near[0]}?" if near else "Give the full name of a function, APP.NAME."
            told = f"names {target!r}, which is no function"
            if found is not None:
                told, hint = f"names {target!r}, which is a job", "Name a function; it may submit the job."
            errors.append(
                LoadError(file=spec.file, line=spec.line, message=f"{name}: {setting} {told}", hint=hint)
            )
            spec = msgspec.structs.replace(spec, **{setting: None})
        out[name] = spec
    return out


def _add_builtin(
    specs: dict[str, FunctionSpec],
    entries: dict[str, Callable[[Any, Any], Any]],
    signatures: Mapping[str, Signature],
) -> None:
    """`headrace.call` runs a function that a caller with the `code` scope sent by cloudpickle;
    `headrace.deliver` takes the records of ended invocations to their buckets and webhooks;
    `headrace.validate` compares an event with a function's types without calling it.
    """
    name = "headrace.call"
    specs[name] = FunctionSpec(
        name=name, module="headrace", file="", line=0, doc="Run a function sent by cloudpickle."
    )

    def call(payload: Any, context: Any) -> Any:
        from headrace.runtime.jobs.call import call_pickled

        return call_pickled(payload, context)

    entries[name] = call
    declared = dict(specs)
    specs[DELIVER] = deliver_spec()

    def deliver(event: Any, context: Any) -> Any:
        from headrace.runtime.queue.deliver import deliver

        return deliver(event, context, declared)

    entries[DELIVER] = deliver
    specs[VALIDATE] = FunctionSpec(
        name=VALIDATE,
        module="headrace",
        file="",
        line=0,
        doc="Compare an event with a function's types.",
        timeout_s=VALIDATE_S,
    )

    def validate(event: Any, context: Any) -> None:
        signature = signatures.get(event["function"])
        if signature is not None:
            signature.arguments(event["event"], context)

    entries[VALIDATE] = validate


def _digest_environment(digest: Any) -> None:
    digest.update(sys.version.encode())
    for folder in sorted({entry for entry in sys.path if entry.endswith("site-packages")}):
        if os.path.isdir(folder):
            digest.update(
                "\n".join(
                    sorted(n for n in os.listdir(folder) if n.endswith((".dist-info", ".egg-info")))
                ).encode()
            )
