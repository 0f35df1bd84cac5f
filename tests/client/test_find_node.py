"""How a client finds its node, and to whom it shows a token."""

import json
from pathlib import Path

import pytest

from headrace.runtime.client.find import DEFAULT_URL, find_node


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def node_in(folder: Path, url: str) -> None:
    folder.mkdir()
    (folder / "node.json").write_text(json.dumps({"url": url, "token_file": "token"}), encoding="utf-8")
    (folder / "token").write_text("secret\n", encoding="utf-8")


def test_without_anything_it_is_the_default_address_without_a_token() -> None:
    assert find_node()[:2] == (DEFAULT_URL, None)


def test_the_data_folder_here_names_node_and_token(here: Path) -> None:
    node_in(here / "data", "http://127.0.0.1:9999")

    assert find_node() == ("http://127.0.0.1:9999", "secret", "data/node.json")


def test_the_data_folder_may_be_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node_in(here / "other", "http://127.0.0.1:9998")
    node_in(here / "third", "http://127.0.0.1:9997")
    (here / "headrace.toml").write_text('data = "third"\n', encoding="utf-8")

    assert find_node().url == "http://127.0.0.1:9997"
    monkeypatch.setenv("HEADRACE_DATA", "other")
    assert find_node().url == "http://127.0.0.1:9998"


def test_an_argument_wins_over_the_environment_and_that_over_the_data_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node_in(here / "data", "http://127.0.0.1:9999")
    monkeypatch.setenv("HEADRACE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HEADRACE_TOKEN", "of-the-environment")

    assert find_node()[:2] == ("http://127.0.0.1:1", "of-the-environment")
    assert find_node("http://127.0.0.1:2", token="given")[:2] == ("http://127.0.0.1:2", "given")


def test_the_folder_s_token_is_not_shown_to_a_stranger(here: Path) -> None:
    node_in(here / "data", "http://10.0.0.5:8080")

    assert find_node("https://example.com").token is None
    assert find_node("http://10.0.0.5:8080/").token == "secret"
    assert find_node("http://localhost:8080").token == "secret"


def test_a_damaged_file_is_as_none(here: Path) -> None:
    node_in(here / "data", "x")
    (here / "data" / "node.json").write_text("{", encoding="utf-8")

    assert find_node()[:2] == (DEFAULT_URL, "secret")
