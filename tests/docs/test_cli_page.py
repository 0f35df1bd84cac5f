"""The page of the command line has every command, with every option of it."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from pages import GUIDE, section
from typer.main import get_command

from headrace.runtime.cli.command import app

TEXT = (GUIDE / "cli.md").read_text(encoding="utf-8")
COMMON = {"--help", "--json", "--url", "--token"}


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "list_commands"):
        yield path, command
        return
    for name in command.list_commands(None):
        yield from commands(command.get_command(None, name), f"{path} {name}")


COMMANDS = dict(commands(get_command(app), "headrace"))


def test_the_page_has_the_commands_that_there_are() -> None:
    assert sorted(re.findall(r"^### (headrace [a-z -]+)$", TEXT, re.MULTILINE)) == sorted(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_is_documented_with_its_options(path: str) -> None:
    text = section(TEXT, f"### {path}")
    options = {
        opt
        for param in COMMANDS[path].params
        for opt in param.opts
        if opt.startswith("--") and opt not in COMMON
    }

    assert [option for option in sorted(options) if f"`{option}" not in text] == []
    assert [found for found in re.findall(r"`(--[a-z-]+)", text) if found not in options | COMMON] == []


def test_the_common_options_are_documented() -> None:
    assert [option for option in COMMON - {"--help"} if f"`{option}`" not in TEXT] == []
