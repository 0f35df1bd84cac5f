"""Calls: a caller's own function sent along with its items, which is what `Client.map` does with a callable.

Imports the error tree, and cloudpickle when it is used. Pickles run code when they are read: a worker reads
only what came from a caller whose token has the `code` scope, and a caller only the answers of the node that
it trusted with its code.
"""

import base64
import hashlib
import importlib.metadata
import pickle
import site
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from headrace.runtime.errors import (
    FunctionError,
    HeadraceError,
    Invalid,
    InvocationFailed,
    UnserialisableResult,
)

FUNCTION = "headrace.call"
"""The name under which every node runs calls; invoking it takes the `code` scope."""

STACK_CHARS_MAX = 20_000
PROTOCOL = 5


class VersionMismatch(Invalid):
    """Caller and worker run versions that cannot read each other's pickles: (what, the caller's, the
    worker's).
    """

    code = "version_mismatch"
    http_status = 409

    def __init__(self, what: str, caller: str, worker: str) -> None:
        super().__init__(what, caller, worker)
        self.hint = f"Run the caller with {what} {worker}, or map a function that the node has, by its name."

    def __str__(self) -> str:
        what, caller, worker = self.args
        return f"the caller runs {what} {caller} and the worker {worker}, so no function can be sent along"


class Unpicklable(Invalid):
    """Something of a call cannot be sent: (what, why)."""

    code = "unpicklable"
    hint = "Open files, locks and connections cannot be sent along: make them inside the function."

    def __str__(self) -> str:
        return f"{self.args[0]} cannot be sent: {self.args[1]}"


def python_version() -> str:
    """Major and minor version, which pickled functions depend on: their bytecode changes with it."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@cache
def cloudpickle_version() -> str:
    """The installed cloudpickle."""
    return importlib.metadata.version("cloudpickle")


class SentFunction:
    """A callable made ready to be sent with any number of items, on the caller's side.

    Functions of `__main__` and of modules that are not installed travel by value, since the workers cannot
    import them. Raises Unpicklable.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        data = _dump(function, f"the function {_name(function)}", by_value=_own_module(function))
        self._head = {
            "python": python_version(),
            "cloudpickle": cloudpickle_version(),
            "digest": hashlib.sha256(data).hexdigest(),
            "function": base64.b64encode(data).decode("ascii"),
        }

    def payload(self, items: Sequence[Any]) -> dict[str, str]:
        """The event of one call that runs the function on each of the items. Raises Unpicklable."""
        items = list(items)
        return {**self._head, "items": base64.b64encode(_dump(items, "an item")).decode("ascii")}


def read_answer(answer: dict[str, Any]) -> list[tuple[Any, InvocationFailed | None]]:
    """Per item, in order: its value and None, or None and the `InvocationFailed` that stands for what the
    function raised.

    Raises VersionMismatch or Unpicklable when the worker could not run the call at all.
    """
    refused = answer.get("refused")
    if refused:
        kind: type[HeadraceError] = {kind.code: kind for kind in (VersionMismatch, Unpicklable)}[
            refused["code"]
        ]
        raise kind(*refused["args"])
    values: list[Any] = _load(answer["results"], "a result")
    errors: dict[str, dict[str, object]] = answer["errors"]
    return [
        (None, _failure(errors[str(index)])) if str(index) in errors else (value, None)
        for index, value in enumerate(values)
    ]


def _failure(detail: dict[str, object]) -> InvocationFailed:
    kind = UnserialisableResult if detail["code"] == UnserialisableResult.code else FunctionError
    return kind(f"{detail['type']}: {detail['message']}", detail)


def call_pickled(event: dict[str, Any], context: object = None) -> dict[str, Any]:
    """The worker's side, the function `headrace.call`: run the sent function on each of its items.

    An item whose function raises is an error of its own beside the others' results, and is not tried again:
    the same code would raise again. A worker that dies on it is tried again as for any invocation.
    """
    try:
        _check_version("Python", event["python"], python_version())
        _check_version("cloudpickle", event["cloudpickle"], cloudpickle_version())
        function = _load_function(event["digest"], event["function"])
        items = _load(event["items"], "an item")
    except (VersionMismatch, Unpicklable) as error:
        return {"refused": {"code": error.code, "args": list(error.args)}}
    values: list[Any] = []
    errors: dict[str, dict[str, str]] = {}
    for index, item in enumerate(items):
        try:
            values.append(function(item))
        except Exception as error:  # the function is the caller's: what it raises is its outcome
            values.append(None)
            errors[str(index)] = _detail(error)
    return {"results": base64.b64encode(_dump_values(values, errors)).decode("ascii"), "errors": errors}


def _check_version(what: str, caller: str, worker: str) -> None:
    if caller != worker:
        raise VersionMismatch(what, caller, worker)


@lru_cache(maxsize=16)
def _load_function(digest: str, text: str) -> Callable[[Any], Any]:
    data = base64.b64decode(text)
    if hashlib.sha256(data).hexdigest() != digest:
        raise Unpicklable("the function", "it arrived damaged")
    function: Callable[[Any], Any] = _load_bytes(data, "the function")
    return function


def _load(text: str, what: str) -> Any:
    return _load_bytes(base64.b64decode(text), what)


def _load_bytes(data: bytes, what: str) -> Any:
    try:
        return pickle.loads(data)
    except ModuleNotFoundError as error:
        raise Unpicklable(
            what, f"it needs the module {error.name}, which the node has not installed"
        ) from None
    except Exception as error:  # reading a pickle runs code of the caller's, which may raise anything
        raise Unpicklable(what, f"reading it raised {type(error).__name__}: {error}") from None


def _dump_values(values: list[Any], errors: dict[str, dict[str, str]]) -> bytes:
    """The results as one pickle; a value that cannot be pickled becomes an error of its item."""
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(values, protocol=PROTOCOL))
    except Exception:  # one of them is at fault: found below, one by one
        for index, value in enumerate(values):
            try:
                cloudpickle.dumps(value, protocol=PROTOCOL)
            except Exception as error:  # a value's own pickling code may raise anything
                values[index] = None
                errors[str(index)] = _detail(error) | {"code": UnserialisableResult.code}
        return bytes(cloudpickle.dumps(values, protocol=PROTOCOL))


def _detail(error: Exception) -> dict[str, str]:
    stack = "".join(traceback.format_exception(error))
    return {
        "code": FunctionError.code,
        "type": type(error).__name__,
        "message": str(error),
        "stack": stack[-STACK_CHARS_MAX:],
    }


_REGISTRY = threading.Lock()  # cloudpickle's table of modules to send by value is the process's


def _dump(value: object, what: str, *, by_value: ModuleType | None = None) -> bytes:
    import cloudpickle

    with _REGISTRY:
        registered = (
            by_value is not None and by_value.__name__ not in cloudpickle.list_registry_pickle_by_value()
        )
        if registered:
            cloudpickle.register_pickle_by_value(by_value)
        try:
            return bytes(cloudpickle.dumps(value, protocol=PROTOCOL))
        except Exception as error:  # a value's own pickling code may raise anything
            raise Unpicklable(what, f"{type(error).__name__}: {error}") from None
        finally:
            if registered:
                cloudpickle.unregister_pickle_by_value(by_value)


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _own_module(function: object) -> ModuleType | None:
    """The function's module, if it is the user's own file and no installed one; None also for `__main__`,
    which is sent by value anyway."""
    name = getattr(function, "__module__", None) or type(function).__module__
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or name == "__main__" or not file:
        return None
    path = Path(file).resolve()
    return None if any(path.is_relative_to(place) for place in _installed_places()) else module


@cache
def _installed_places() -> tuple[Path, ...]:
    named = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages()]
    ours = Path(__file__).resolve().parents[1]  # this package, which is installed wherever it is run from
    return (
        *(
            Path(name).resolve()
            for name in named
            if (name and "site" in name) or name.endswith(python_version())
        ),
        ours,
    )
