"""Settings: which source wins, where a value came from, and what is refused."""

import os
from pathlib import Path

import pytest

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.settings import (
    Settings,
    Token,
    describe,
    hide_password,
    known_settings,
    load_settings,
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(text: str) -> Path:
    path = Path("headrace.toml")
    path.write_text(text, encoding="utf-8")
    return path


def test_without_sources_the_defaults_hold() -> None:
    settings = load_settings()

    assert (settings.host, settings.port, settings.burst_workers, settings.sync_wait_s) == (
        "127.0.0.1",
        8080,
        8,
        1,
    )
    assert (settings.body_bytes_sync, settings.body_bytes_async) == (6 << 20, 1 << 20)
    assert (settings.kept.dead_s, settings.kept.logs_bytes) == (14 * 86_400, 1 << 30)
    assert (settings.defaults.timeout_s, settings.defaults.retries) == (60, 2)
    assert settings.workers == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else True


def test_the_store_and_the_buckets_are_in_the_data_folder_unless_named() -> None:
    settings = load_settings({"data": Path("here")})

    assert (settings.store, settings.objects) == ("here/headrace.db", "here/buckets")
    assert load_settings({"store": "postgresql://db/x"}).store == "postgresql://db/x"


def test_flags_win_over_the_environment_and_that_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write("port = 1\nburst_workers = 1\nsweep_s = 30\n")
    monkeypatch.setenv("HEADRACE_PORT", "2")
    monkeypatch.setenv("HEADRACE_BURST_WORKERS", "2")

    settings = load_settings({"port": 3, "host": None})

    assert (settings.port, settings.burst_workers, settings.sweep_s) == (3, 2, 30)
    assert settings.source_of("port") == "--port"
    assert settings.source_of("burst_workers") == "env HEADRACE_BURST_WORKERS"
    assert settings.source_of("sweep_s") == "headrace.toml:3"
    assert settings.source_of("host") == "default"
    with pytest.raises(KeyError):
        settings.source_of("nothing")


def test_sections_are_merged_over_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    write('[kept]\ndead_s = "2 d"\nlogs_s = 60\n[defaults]\nmemory_bytes = "1 GiB"\n')
    monkeypatch.setenv("HEADRACE_KEPT_LOGS_S", "90 s")

    settings = load_settings()

    assert (settings.kept.dead_s, settings.kept.logs_s) == (2 * 86_400, 90)
    assert settings.defaults.memory_bytes == 1 << 30
    assert settings.source_of("kept.dead_s") == "headrace.toml:2"
    assert settings.source_of("kept.logs_s") == "env HEADRACE_KEPT_LOGS_S"


def test_places_in_the_file_are_relative_to_it() -> None:
    Path("deploy").mkdir()
    Path("deploy/headrace.toml").write_text('data = "state"\nobjects = "s3://minio:9000"\n', encoding="utf-8")

    settings = load_settings(config=Path("deploy/headrace.toml"))

    assert (settings.data, settings.objects) == (Path("deploy/state"), "s3://minio:9000")
    assert settings.store == "deploy/state/headrace.db"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "port = 1\nwokers = 2\n",
            "headrace.toml:2: there is no setting named wokers",
            "Did you mean workers?",
        ),
        (
            "[kept]\nlog_s = 1\n",
            "headrace.toml:2: there is no setting named kept.log_s",
            "Did you mean kept.logs_s?",
        ),
        ("[kpet]\nlogs_s = 1\n", "headrace.toml:2: there is no setting named kpet.logs_s", "kept.logs_s"),
        ('\nport = "x"\n', r"port \(headrace.toml:2\) is 'x'", "port to listen on"),
        ('drain_s = "1 week"\n', r"drain_s .* such as \"90 s\"", "seconds"),
        ("drain_s = -1\n", r"drain_s .* greater than or equal to 0", "seconds"),
        ("drain_s = inf\n", r"drain_s .* finite", "seconds"),
        ("port = [\n", "headrace.toml is not valid TOML", "Mend"),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_line(text: str, message: str, hint: str) -> None:
    write(text)

    with pytest.raises(InvalidSettings, match=message) as caught:
        load_settings()
    assert hint in caught.value.hint


def test_a_wrong_variable_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_PROT", "1")

    with pytest.raises(InvalidSettings, match="no setting named HEADRACE_PROT") as caught:
        load_settings()
    assert "HEADRACE_PORT" in caught.value.hint


def test_the_client_s_variables_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HEADRACE_TOKEN", "x")

    assert load_settings().port == 8080


def test_a_named_file_must_be_there() -> None:
    with pytest.raises(InvalidSettings, match=r"missing\.toml cannot be read"):
        load_settings(config=Path("missing.toml"))


def test_tokens_are_read_from_text_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_TOKENS", "ci:invoke+read:s:cret,ops:admin:other")

    first, second = load_settings().tokens

    assert (first.name, first.scopes, first.secret.get_secret_value()) == ("ci", {"invoke", "read"}, "s:cret")
    assert second.scopes == {"admin"}
    assert "s:cret" not in repr(first)


@pytest.mark.parametrize("text", ["secret", "ci:invoke", "ci::secret", "ci:fly:secret", ":invoke:secret"])
def test_a_token_of_another_form_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("HEADRACE_TOKENS", text)

    with pytest.raises(InvalidSettings) as caught:
        load_settings()
    assert "'secret'" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "node.example"])
def test_listening_to_other_machines_takes_tokens(host: str) -> None:
    with pytest.raises(InvalidSettings, match="no tokens are configured"):
        load_settings({"host": host}).check_exposure()
    Settings(host=host, tokens=(Token.parse("ci:invoke:x"),)).check_exposure()
    Settings(host="127.0.0.1").check_exposure()


def test_settings_made_directly_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    write("port = 1\n")
    monkeypatch.setenv("HEADRACE_PORT", "2")

    assert Settings().port == 8080


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1


def test_every_setting_says_what_it_is() -> None:
    assert [name for name in known_settings() if not describe(name)] == []


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me:s3cret@db:5432/shop", "postgresql://me:***@db:5432/shop"),
        ("postgresql://me:s3:c@r/et@db/shop", "postgresql://me:***@db/shop"),
        ("postgresql://:s3cret@db/shop", "postgresql://:***@db/shop"),
        ("postgresql://db/shop?user=me&password=s3cret&x=1", "postgresql://db/shop?user=me&password=***&x=1"),
        ("postgresql://me@db/shop", "postgresql://me@db/shop"),
        ("data/head:race@home.db", "data/head:race@home.db"),
        ("s3://key:s3cret@127.0.0.1:9000", "s3://key:***@127.0.0.1:9000"),
    ],
)
def test_the_password_of_an_address_is_not_shown(address: str, shown: str) -> None:
    assert hide_password(address) == shown
    assert dict(Settings(store=address).items())["store"] == shown
