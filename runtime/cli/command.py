"""The command line: which commands there are, and how any of them ends.

Imports typer; a command's own module is imported when it is called. Every error is one line on the error
stream that says what to do, with exit code 1, or 2 for a usage that cannot be read: never a traceback, unless
HEADRACE_DEBUG is set.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from headrace.runtime.errors import HeadraceError

# Command: where it is, and the line that `headrace --help` shows without importing it.
COMMANDS = {
    "serve": ("serve:serve", "Run a node that serves the functions in files and folders."),
    "dev": ("serve:dev", "Serve with reload, printing each invocation's log lines as they come."),
    "invoke": ("invoke:app", "Run a function on a payload, or a sample event, and print its result."),
    "event": ("event:app", "Print an event as a trigger would give it to its function."),
    "functions": ("functions:functions", "List the functions that the node has loaded, or show one."),
    "invocations": ("invocations:app", "List, show and cancel invocations."),
    "job": ("job:app", "Submit, list, show, redrive and cancel jobs."),
    "schedule": ("schedule:app", "List schedules and their moments; pause, resume, run and backfill them."),
    "dead-letters": ("dead_letters:app", "List, show, edit, redrive and discard what failed for good."),
    "why": ("why:why", "Say what holds an invocation, a job, a schedule or a function, and until when."),
    "replay": ("replay:replay", "Run a past invocation here, with its payload and its code."),
    "closures": ("closures:app", "List what functions have closed by RetryAfter, and open it."),
    "logs": ("logs:logs", "Show what invocations printed."),
    "buckets": ("buckets:app", "List and make buckets."),
    "objects": ("objects:app", "Put, get and list objects."),
    "token": ("token:token", "Make a token or a key, and the setting that holds its hash."),
    "config": ("config:config", "Show each setting and where its value came from."),
    "doctor": ("doctor:doctor", "Check this machine, and say what is missing and what to do."),
    "verify": ("verify:verify", "Check that the books balance: nothing accepted is unaccounted for."),
    "demo": ("start:demo", "Run the whole of it once on a file of reviews."),
    "init": ("start:init", "Write a small project to begin with."),
}

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it

# What typer raises for a wrong usage has no public name in all of its releases; its public subclass has.
_UsageError, _ClickError = typer.BadParameter.__mro__[1:3]


class _AsGiven:
    """Lets a parameter's value through that has its type already, and leaves any other to typer.

    Newer releases of typer convert values by pydantic, whose import alone would double the time that a
    command takes to start; most values are texts or defaults, which need no conversion. Where typer works
    otherwise, this is not used.
    """

    def __init__(self, param: Any) -> None:
        self._param = param

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        kind = param.type_descriptor.annotation
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if several and kind == list[str] and all(type(each) is str for each in value):
            return list(value)
        if not several and type(value) is kind and not isinstance(value, Path):
            return value
        self._param._runtime_param = None  # typer makes its own now
        converted = self._param.get_runtime_param().coerce(value, param=param, ctx=ctx)
        self._param._runtime_param = self
        return converted


def _quick(command: Any) -> Any:
    """The same command, whose parameters (also that of --help, which is made late) are `_AsGiven`."""
    for each in [command, *getattr(command, "commands", {}).values()]:
        each.get_params = partial(_quick_params, each.get_params)
    return command


def _quick_params(get_params: Callable[[Any], list[Any]], ctx: Any) -> list[Any]:
    params = get_params(ctx)
    for param in params:
        if getattr(param, "_runtime_param", param) is None:
            param._runtime_param = _AsGiven(param)
    return params


class _Commands(TyperGroup):
    """The commands of the table, each loaded when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        place, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(f"headrace.runtime.cli.{place}"), attribute)
        if not isinstance(found, typer.Typer):
            single = group()
            single.command(cmd_name)(found)
            found = single
        command: Any = get_command(found)
        command.name = cmd_name
        return _quick(command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def group(**options: Any) -> typer.Typer:
    """A typer group or command as all of ours are: plain help, which starts fast, and errors as they are
    raised.
    """
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **options)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"headrace {version('headrace')}")
        raise typer.Exit


app = typer.Typer(cls=_Commands, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def headrace(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Functions, triggers and large split/aggregate jobs on your own machines."""


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; what goes wrong is on the error stream."""
    try:
        code = _quick(get_command(app)).main(args=arguments, prog_name="headrace", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; Python would say so again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # the outermost loop of this process
        return _ended_by(error)


def _ended_by(error: Exception) -> int:
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, typer.Abort):
        return EXIT_INTERRUPTED
    if isinstance(error, _ClickError):
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(str(getattr(error, "message", error)))
            return 2
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "headrace"
        message = error.format_message()  # type: ignore[attr-defined]
        tell(message, f"Try `{path} --help`." if isinstance(error, _UsageError) else "")
        return 2 if isinstance(error, _UsageError) else 1
    if isinstance(error, HeadraceError):
        tell(str(error), _hint(error))
    elif isinstance(error, OSError) and error.strerror:
        tell(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
    else:
        tell(f"{type(error).__name__}: {error}", "This is a bug in headrace; HEADRACE_DEBUG=1 shows where.")
    if os.environ.get("HEADRACE_DEBUG"):
        import traceback

        traceback.print_exception(error)
    return 1


def _hint(error: HeadraceError) -> str:
    """The error's hint, with the id of the invocation that it is about in the command that it names."""
    detail = getattr(error, "detail", None)
    id = detail.get("invocation_id") if isinstance(detail, dict) else None
    return error.hint.replace(" ID`", f" {id}`") if id else error.hint


def tell(message: str, hint: str = "") -> None:
    """Print one line on the error stream: what happened, and what to do."""
    text = " ".join(message.split()).rstrip(".")
    typer.echo(f"error: {text}.{f' {hint}' if hint else ''}", err=True)
