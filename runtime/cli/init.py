"""`headrace init`: writes a small project that runs, for a user to change into their own.

The project's files lie in `starter/` as they are written, under plain names; nothing is filled in, so that
what the tests run is what users get.
"""

import shlex
from collections.abc import Callable
from pathlib import Path

from headrace.runtime.errors import Conflict, InvalidSettings, ReadOnlyStorage

STARTER = Path(__file__).resolve().parent / "starter"

# Where each file comes from, by where it goes. The one that begins with a dot would be taken for our own.
FILES = {
    "README.md": "README.md",
    "functions/app.py": "functions/app.py",
    "headrace.toml": "headrace.toml",
    "pyproject.toml": "pyproject.toml",
    "tests/test_app.py": "tests/test_app.py",
    ".gitignore": "gitignore",
}


class WouldOverwrite(Conflict):
    """A file that is to be written exists already: (path)."""

    code = "would_overwrite"
    hint = "Nothing was written. Name a new folder, or move that file away."

    def __str__(self) -> str:
        return f"{self.args[0]} exists already"


def run_init(target: Path, *, say: Callable[[str], None] = print) -> int:
    """Write the starter project into `target`, which is made when it is missing, and say what to type next.

    A folder that exists may hold other files; if it holds one of ours, nothing at all is written.

    Returns: 0, the command's exit code.
    Raises: WouldOverwrite; InvalidSettings if `target` is no folder; ReadOnlyStorage if it cannot be written.
    """
    for folder in (target, *((target / name).parent for name in FILES)):
        if folder.exists() and not folder.is_dir():
            raise InvalidSettings(f"{folder} is not a folder", "Name another; it is made when it is missing.")
    for name in FILES:
        if (target / name).exists() or (target / name).is_symlink():
            raise WouldOverwrite(str(target / name))
    for name, source in FILES.items():
        try:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("x", encoding="utf-8") as file:
                file.write((STARTER / source).read_text(encoding="utf-8"))
        except FileExistsError:
            raise WouldOverwrite(str(target / name)) from None
        except PermissionError as e:
            raise ReadOnlyStorage(str(target)) from e
        say(f"wrote {target / name}")

    here = target.resolve() == Path.cwd()
    say("")
    say("Next:")
    if not here:
        say(f"  cd {shlex.quote(str(target))}")
    say("  headrace dev functions/")
    say("  curl localhost:8080/greet/Ada      # in a second terminal")
    if here:
        say("  python -m pytest")
    return 0
