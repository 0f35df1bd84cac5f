"""Loading: files, folders and modules; one broken file does not stop the others."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headrace import App
from headrace.runtime.code import request_for, request_for_app
from headrace.runtime.loading import Loaded, load

ROOT = Path(__file__).resolve().parents[2]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes `functions/NAME` and returns the folder."""
    folder = tmp_path / "functions"
    folder.mkdir()

    def file(name: str, text: str) -> Path:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(textwrap.dedent(text), encoding="utf-8")
        return folder

    return file


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def names(loaded: Loaded) -> set[str]:
    return {spec.name for spec in loaded.manifest.functions if not spec.name.startswith("headrace.")}


def load_from(*places: Path | str) -> Loaded:
    return load(request_for([str(place) for place in places]))


GOOD = """
    from headrace import App
    app = App("{name}")

    @app.function
    def f(event):
        return ["{name}", event]
"""


def good(name: str) -> str:
    return GOOD.format(name=name)


def test_a_file_a_folder_and_a_module_are_loaded(write: Write) -> None:
    folder = write("one.py", good("one"))
    write("deep/er/two.py", good("two"))
    assert names(load_from(folder)) == {"one.f", "two.f"}
    write("three.py", good("three"))
    loaded = load_from(folder / "three.py")
    assert names(loaded) == {"three.f"}
    assert loaded.entries["three.f"]({"a": 1}, None) == ["three", {"a": 1}]
    write("four_module.py", good("four"))
    sys.path.insert(0, str(folder))
    assert names(load_from("four_module")) == {"four.f"}
    assert loaded.manifest.errors == ()


def test_what_is_hidden_private_or_a_test_is_left_alone(write: Write) -> None:
    folder = write("one.py", good("one"))
    for name in (
        "_helper.py",
        ".hidden.py",
        "tests/test_one.py",
        "__pycache__/x.py",
        "venv/y.py",
        "notes.txt",
    ):
        write(name, "raise SystemExit('imported')")
    loaded = load_from(folder)
    assert (names(loaded), loaded.manifest.errors) == ({"one.f"}, ())


def test_the_builtin_function_is_always_there(write: Write) -> None:
    loaded = load_from(write("one.py", good("one")))
    assert "headrace.call" in loaded.entries
    assert loaded.manifest.function("headrace.call") is not None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("x = 1\nx = = 2\n", 2, "SyntaxError: invalid syntax"),
        (
            "import os\n\nimport no_such_module_here\n",
            3,
            "ModuleNotFoundError: No module named 'no_such_module_here'",
        ),
        ("def f():\n    raise ValueError('boom')\n\nf()\n", 2, "ValueError: boom"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("1/0\n", 1, "ZeroDivisionError: division by zero"),
        ("from headrace import App\napp = App('a b')\n", 2, "App('a b'): is not a valid name"),
        (
            "from headrace import App\napp = App('x')\n@app.function\ndef f(*parts): ...\n",
            3,
            "*parts cannot be filled",
        ),
        ("x = '\\udc80'.encode()\n", 1, "UnicodeEncodeError"),
        ("raise ValueError\n", 1, "ValueError"),
        ("raise ValueError('\\n\\nsecond line')\n", 1, "ValueError"),
    ],
)
def test_a_broken_file_is_named_with_its_line_and_the_others_are_loaded(
    write: Write, text: str, line: int, message: str
) -> None:
    write("one.py", good("one"))
    folder = write("two.py", text)
    write("zzz.py", good("zzz"))
    loaded = load_from(folder)
    assert names(loaded) == {"one.f", "zzz.f"}
    [error] = loaded.manifest.errors
    assert (error.file, error.line) == (str(folder / "two.py"), line)
    assert error.message.startswith(message) or message in error.message
    assert "\n" not in error.message


def test_a_file_that_is_no_text_is_a_load_error(write: Write) -> None:
    folder = write("one.py", good("one"))
    (folder / "two.py").write_bytes(b"x = '\xff\xfe'\0")
    loaded = load_from(folder)
    assert names(loaded) == {"one.f"}
    assert len(loaded.manifest.errors) == 1


def test_a_misspelt_import_gets_a_hint(write: Write) -> None:
    [error] = load_from(write("one.py", "import jsno\n")).manifest.errors
    assert error.hint == "Install jsno, or did you mean json?"


def test_nothing_to_load_is_said(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    [error] = load_from(empty).manifest.errors
    assert (error.file, error.message) == (str(empty), "holds no Python files")
    [error] = load_from(tmp_path / "nowhere.py").manifest.errors
    assert error.message == "does not exist"
    [error] = load_from("no_such_module_anywhere").manifest.errors
    assert "neither a file, a folder nor a module" in error.message


def test_two_apps_in_a_file_and_one_app_in_two_files_are_both_fine(write: Write) -> None:
    folder = write(
        "pair.py",
        """
        from headrace import App
        red, blue = App("red"), App("blue")
        @red.function
        def f(event): return "red"
        @blue.function(name="f")
        def g(event): return "blue"
        """,
    )
    write("a_shared.py", "from headrace import App\napp = App('shared')\n")
    write("b.py", "from a_shared import app\n@app.function\ndef one(event): ...\n")
    write("c.py", "from a_shared import app\n@app.function\ndef two(event): ...\n")
    loaded = load_from(folder)
    assert loaded.manifest.errors == ()
    assert names(loaded) == {"red.f", "blue.f", "shared.one", "shared.two"}


def test_a_file_named_twice_is_loaded_once(write: Write) -> None:
    folder = write("one.py", good("one"))
    loaded = load_from(folder, folder / "one.py")
    assert (names(loaded), loaded.manifest.errors) == ({"one.f"}, ())


def test_two_files_of_one_name_in_different_folders_are_two(write: Write) -> None:
    folder = write("a/main.py", good("first"))
    write("b/main.py", good("second"))
    loaded = load_from(folder)
    assert names(loaded) == {"first.f", "second.f"}
    assert [loaded.entries[name](1, None)[0] for name in ("first.f", "second.f")] == ["first", "second"]


def test_a_file_named_like_a_module_that_is_imported_already_is_itself(write: Write) -> None:
    loaded = load_from(write("textwrap.py", good("wrap")) / "textwrap.py")
    assert names(loaded) == {"wrap.f"}
    assert sys.modules["textwrap"] is textwrap


def test_a_name_taken_in_another_file_is_an_error_and_the_first_stands(write: Write) -> None:
    folder = write("a.py", good("shop"))
    write("b.py", good("shop"))
    loaded = load_from(folder)
    assert names(loaded) == {"shop.f"}
    [error] = loaded.manifest.errors
    assert error.message == f"the name shop.f is taken by {folder / 'a.py'}:5"
    assert error.file == str(folder / "b.py")


def test_a_destination_that_is_no_function_is_an_error_with_the_nearest(write: Write) -> None:
    folder = write(
        "a.py",
        """
        from headrace import App
        app = App("shop")
        @app.function(on_failure="shop.alrets")
        def f(event): ...
        @app.function
        def alerts(event): ...
        """,
    )
    loaded = load_from(folder)
    [error] = loaded.manifest.errors
    assert "on_failure names 'shop.alrets'" in error.message
    assert error.hint == "Did you mean shop.alerts?"
    spec = loaded.manifest.function("shop.f")
    assert spec is not None
    assert spec.on_failure is None


def test_the_version_changes_with_the_content_and_with_nothing_else(write: Write) -> None:
    folder = write("one.py", good("one"))
    first = load_from(folder).manifest.version
    assert load_from(folder).manifest.version == first
    (folder / "one.py").touch()
    assert load_from(folder).manifest.version == first
    write("one.py", good("one") + "\n# changed\n")
    changed = load_from(folder).manifest.version
    assert changed != first
    write("two.py", "x = 1\n")
    assert load_from(folder).manifest.version not in (first, changed)


def test_what_a_private_module_beside_the_functions_holds_is_part_of_the_version(write: Write) -> None:
    folder = write("one.py", good("one"))
    write("_rates.py", "rate = 1\n")
    first = load_from(folder).manifest.version
    write("_rates.py", "rate = 2\n")
    assert load_from(folder).manifest.version != first


def test_defaults_of_the_node_reach_functions_that_do_not_say_their_own(write: Write) -> None:
    folder = write(
        "a.py",
        """
        from headrace import App
        app = App("a")
        @app.function
        def plain(event): ...
        @app.function(timeout=7, retries=1)
        def own(event): ...
        """,
    )
    loaded = load(request_for([str(folder)], defaults={"timeout_s": 9.0, "retry": {"retries": 5}}))
    plain, own = loaded.manifest.function("a.plain"), loaded.manifest.function("a.own")
    assert plain is not None
    assert own is not None
    assert (plain.timeout_s, plain.retry.retries) == (9.0, 5)
    assert (own.timeout_s, own.retry.retries) == (7.0, 1)


def test_an_app_that_asks_for_spawned_workers_gets_them(write: Write) -> None:
    write("a.py", good("a"))
    folder = write("b.py", good("b").replace('App("b")', 'App("b", start="spawn")'))
    manifest = load_from(folder).manifest
    assert (manifest.start, manifest.why) == ("spawn", "an app asks for it")


def test_an_app_of_this_process_travels_with_its_closures() -> None:
    app, factor = App("mem"), 3

    @app.function
    def times(n: Any) -> Any:
        return n * factor

    loaded = load(request_for_app(app))
    assert loaded.manifest.errors == ()
    assert loaded.entries["mem.times"](14, None) == 42


def test_an_app_node_in_a_script_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from headrace import App
            app = App("mine")
            factor = 6

            class Pair:
                def __init__(self, n): self.n = n
                def times(self): return self.n * factor

            @app.function
            def times(n):
                return Pair(n).times()

            @app.function(name="add")
            def _(a, b=2):
                return times(a) + b

            with app.node(data={str(tmp_path / "data")!r}, workers=1) as client:
                print(client.invoke("mine.times", 7), client.invoke("mine.add", {{"a": 1}}))
                print([f.result() for f in client.submit_many("mine.times", [1, 2])])
            """
        ),
        encoding="utf-8",
    )
    ran = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "42 8\n[6, 12]\n"), ran.stderr
