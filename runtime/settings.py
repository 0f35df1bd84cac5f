"""Settings: what a node is told before it starts, and where each value came from.

Imports `errors` and `model.size`. `Settings(...)` takes what it is given and reads nothing else, so that
tests and embedded nodes are not changed by their surroundings; `load_settings` reads headrace.toml, then
HEADRACE_* variables, then flags.
"""

import base64
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from headrace.runtime.errors import InvalidSettings
from headrace.runtime.model.size import read_size

FILE_NAME = "headrace.toml"
SCOPES = ("invoke", "read", "write", "code", "events", "admin")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# Variables of ours that are not settings of a node: the client's, the choice of the file, and those of the
# tests.
OTHER_VARIABLES = {
    "HEADRACE_URL", "HEADRACE_TOKEN", "HEADRACE_CONFIG", "HEADRACE_DEBUG",
    "HEADRACE_REQUIRE_SERVICES", "HEADRACE_MINIO", "HEADRACE_FAULT", "HEADRACE_FAULT_ONCE",
}  # fmt: skip

_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def read_duration(value: object) -> object:
    """Seconds of `90`, `"90"`, `"90 s"`, `"1.5 h"` or `"14 d"` (also `ms`, `m` and `min`).

    Raises ValueError for a text of another form; what is no text is given back as it is.
    """
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value)
    if found is None or found[2] not in _SECONDS:
        raise ValueError('it must be seconds, or a text such as "90 s", "6 h" or "14 d"')
    return float(found[1]) * _SECONDS[found[2]]


def _bytes(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return read_size(value, field="it")
    except InvalidSettings:
        raise ValueError('it must be bytes, or a text such as "4 MiB"') from None


Seconds = Annotated[float, BeforeValidator(read_duration), Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]


_OWN_SCOPE = re.compile(r"invoke@[A-Za-z0-9_.*?-]+|[a-z0-9_-]+(\.[a-z0-9_-]+)+")


def _scope(text: str) -> str:
    if text not in SCOPES and not _OWN_SCOPE.fullmatch(text):
        raise ValueError(
            f"{text!r} is no scope; the scopes are {', '.join(SCOPES)}, invoke@FUNCTION,"
            " and your own, which hold a dot"
        )
    return text


class Token(BaseModel):
    """A bearer token: its name in logs, what it may do, and the secret itself, or `sha256:` and its hash."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    scopes: frozenset[Annotated[str, AfterValidator(_scope)]]
    secret: SecretStr

    @classmethod
    def parse(cls, text: str) -> "Token":
        """Read `NAME:SCOPE+SCOPE:SECRET`; the secret may hold colons. Raises ValueError for another form."""
        name, _, rest = text.strip().partition(":")
        scopes, _, secret = rest.partition(":")
        asked = [scope for scope in scopes.split("+") if scope]
        for scope in asked:
            _scope(scope)
        if not (name and asked and secret):
            raise ValueError("a token is written NAME:SCOPE+SCOPE:SECRET, such as ci:invoke+read:3f9c…")
        return cls.model_validate({"name": name, "scopes": asked, "secret": secret})


_USER_INFO = re.compile(r"^([\w+.-]+://)([^:@/?#]*):.*@", re.DOTALL)
_PASSWORD = re.compile(r"([?&](?:ssl)?password=)[^&#]*", re.IGNORECASE)


def hide_password(address: str) -> str:
    """An address as it may be shown; what is no address is returned as it is.

    >>> hide_password("postgresql://me:secret@db/shop")
    'postgresql://me:***@db/shop'
    """
    return _PASSWORD.sub(r"\1***", _USER_INFO.sub(r"\1\2:***@", address))


def _tokens(value: object) -> object:
    if isinstance(value, str):
        value = [part for part in re.split(r"[,\s]+", value) if part]
    if isinstance(value, Iterable):
        return tuple(Token.parse(item) if isinstance(item, str) else item for item in value)
    return value


def _names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for part in re.split(r"[,\s]+", value) if part)
    return value


def _cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return max(1, len(affinity(0)) if affinity else os.cpu_count() or 1)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Kept(_Section):
    """How long what has ended is kept; whichever limit is met first removes it."""

    succeeded_s: Seconds = Field(default=86_400.0, description="seconds that succeeded invocations are kept")
    succeeded_rows: int = Field(default=1_000_000, ge=0, description="succeeded invocations that are kept")
    dead_s: Seconds = Field(default=14 * 86_400.0, description="seconds that dead invocations are kept")
    logs_s: Seconds = Field(
        default=7 * 86_400.0, description="seconds that the output of invocations is kept"
    )
    logs_bytes: Bytes = Field(default=1 << 30, description="bytes of output that are kept")
    every_s: Annotated[Seconds, Field(ge=0.1)] = Field(
        default=60.0, description="seconds between two removals of what is out of date"
    )


class Defaults(_Section):
    """What holds for a function that does not say otherwise."""

    timeout_s: Seconds = Field(default=60.0, description="seconds that one attempt may run")
    memory_bytes: Bytes = Field(default=512 << 20, description="bytes of memory that one attempt may use")
    retries: int = Field(default=2, ge=0, le=1000, description="attempts after the first")
    max_age_s: Seconds = Field(default=6 * 3600.0, description="seconds after which an event is dead")


class Settings(BaseSettings):
    """All settings of one node. Durations in seconds, sizes in bytes; frozen.

    `store` and `objects` are filled from `data` when they are not given. Raises InvalidSettings through
    `load_settings`, and pydantic's ValidationError when made directly from wrong values.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", validate_default=False)

    data: Path = Field(default=Path("data"), description="folder that holds what the node keeps")
    store: str = Field(
        default="", description="SQLite file or postgresql:// address; DATA/headrace.db by default"
    )
    objects: str = Field(
        default="", description="folder of buckets or s3://HOST:PORT; DATA/buckets by default"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8080, ge=0, le=65535, description="port to listen on; 0 for any free one")
    workers: int = Field(
        default_factory=_cores, ge=1, le=4096, description="worker processes; one per core by default"
    )
    burst_workers: int = Field(default=8, ge=0, le=1024, description="workers forked for callers who wait")
    sync_wait_s: Seconds = Field(
        default=1.0, description="seconds that a synchronous call waits for a worker"
    )
    tokens: Annotated[tuple[Token, ...], NoDecode, BeforeValidator(_tokens)] = Field(
        default=(), description="NAME:SCOPE+SCOPE:SECRET, separated by commas; DATA/token when there are none"
    )
    body_bytes_sync: Bytes = Field(default=6 << 20, description="bytes of a synchronous call's body at most")
    body_bytes_async: Bytes = Field(default=1 << 20, description="bytes of an async event at most")
    stream_idle_s: Annotated[Seconds, Field(gt=0)] = Field(
        default=60.0, description="seconds that a streamed answer waits for a caller who takes nothing"
    )
    node_lease_s: Annotated[Seconds, Field(ge=1)] = Field(
        default=10.0, description="seconds that claims outlive their node"
    )
    drain_s: Seconds = Field(
        default=30.0, description="seconds that running work has to end when the node stops"
    )
    kill_grace_s: Seconds = Field(default=1.0, description="seconds between SIGTERM and SIGKILL of a worker")
    access_log: bool = Field(default=False, description="whether each HTTP request is logged")
    callback_secret: SecretStr | None = Field(
        default=None, description="what signs callbacks: whsec_ and base64; none without it"
    )
    callback_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)] = Field(
        default=(), description="hosts, *.DOMAIN or networks that may be called back although not public"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged"
    )
    log_format: Literal["auto", "human", "json"] = Field(
        default="auto", description="human on a terminal, json elsewhere"
    )
    sweep_s: Annotated[Seconds, Field(ge=1)] = Field(
        default=300.0, description="seconds between full listings of watched buckets"
    )
    recycle_after: int = Field(
        default=10_000, ge=1, description="invocations after which a worker is replaced"
    )
    kept: Kept = Kept()
    defaults: Defaults = Defaults()

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # `load_settings` reads the others, since it must know which gave what

    @field_validator("callback_secret")
    @classmethod
    def _signs(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            text = secret.get_secret_value().removeprefix("whsec_")
            try:
                key = base64.b64decode(text, validate=True)
            except ValueError:
                key = b""
            if not 24 <= len(key) <= 64:  # the Standard Webhooks specification, "Signature scheme"
                raise ValueError("it must be whsec_ and the base64 of 24 to 64 random bytes")
        return secret

    @model_validator(mode="after")
    def _follow_data(self) -> "Settings":
        for name, place in (("store", "headrace.db"), ("objects", "buckets")):
            if not getattr(self, name):
                object.__setattr__(self, name, str(self.data / place))  # frozen for everybody else
        self._origins.update((name, "argument") for name in _leaves(self.model_dump(exclude_unset=True)))
        return self

    @property
    def loopback(self) -> bool:
        """Whether the node listens to this machine only."""
        return self.host in LOOPBACK or self.host.startswith("127.")

    def check_exposure(self) -> None:
        """Raises InvalidSettings if the node would be open to other machines without configured tokens."""
        if not self.loopback and not self.tokens:
            raise InvalidSettings(
                f"host is {self.host}, which other machines reach, and no tokens are configured",
                "Set HEADRACE_TOKENS=NAME:SCOPE+SCOPE:SECRET, or listen on 127.0.0.1.",
            )

    def source_of(self, name: str) -> str:
        """Where a value came from: `default`, `FILE:LINE`, `env VARIABLE`, `--FLAG`, or `argument`.

        `name` is dotted (`kept.dead_s`). Raises KeyError for a name that is no setting.
        """
        if name not in dict(self.items()):
            raise KeyError(name)
        return self._origins.get(name, "default")

    def items(self) -> Iterator[tuple[str, Any]]:
        """Each setting's dotted name and value, in the order of declaration; secrets stay hidden, and so do
        the passwords of addresses.
        """
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in ("store", "objects"):
                value = hide_password(value)
            if isinstance(value, _Section):
                for inner in type(value).model_fields:
                    yield f"{name}.{inner}", getattr(value, inner)
            else:
                yield name, value

    def with_origins(self, origins: Mapping[str, str]) -> "Settings":
        """The same settings, whose `source_of` answers from `origins` (dotted names)."""
        self._origins.clear()
        self._origins.update(origins)
        return self


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read the settings of a node: headrace.toml, then HEADRACE_* variables, then flags; the last one that
    says wins.

    Args:
        flags: values by setting; None means that the flag was not given.
        config: the file; `HEADRACE_CONFIG` or `headrace.toml` in the working directory by default. A relative
            `data`, a SQLite `store` and a folder of `objects` in it are relative to the file.
        environ: the environment to check for unknown names; the process's own by default.

    Raises: InvalidSettings for a file that cannot be read, an unknown key, or a wrong value.
    """
    environ = os.environ if environ is None else environ
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for values, origin in (
        _from_file(config, environ),
        _from_environment(environ),
        ({k: v for k, v in (flags or {}).items() if v is not None}, {}),
    ):
        names = list(_leaves(values))
        for name in names:
            origins[name] = origin.get(name) or f"--{name.replace('_', '-')}"
        _merge(merged, values)
    try:
        settings = Settings(**merged)
    except ValidationError as error:
        raise _refusal(error, origins) from None
    return settings.with_origins(origins)


def _from_file(config: Path | None, environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of the file and where each stands; nothing when no file was named and there is none."""
    named = config or (Path(environ["HEADRACE_CONFIG"]) if environ.get("HEADRACE_CONFIG") else None)
    path = named or Path(FILE_NAME)
    if named is None and not path.is_file():
        return {}, {}
    try:
        lines = _key_lines(path.read_text(encoding="utf-8"))
        values = dict(TomlConfigSettingsSource(Settings, toml_file=path)())
    except OSError as error:
        raise InvalidSettings(
            f"{path} cannot be read: {error.strerror}", "Name the file with --config, or leave it out."
        ) from None
    except ValueError as error:  # TOMLDecodeError, and UnicodeDecodeError from reading
        raise InvalidSettings(f"{path} is not valid TOML: {error}", "Mend that line.") from None
    for name in _leaves(values):
        _check_known(name, f"{path}:{lines.get(name, 1)}")
    for name in ("data", "store", "objects"):
        place = values.get(name)
        if isinstance(place, str) and place and "://" not in place:
            values[name] = str(path.parent / Path(place).expanduser())
    return values, {name: f"{path}:{lines.get(name, 1)}" for name in _leaves(values)}


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    variables = {name: f"HEADRACE_{name.upper().replace('.', '_')}" for name in known_settings()}
    for variable in sorted(environ):
        if variable.startswith("HEADRACE_") and variable not in OTHER_VARIABLES | {*variables.values()}:
            _check_known(variable, "the environment", [*variables.values()])
    found = {name: variable for name, variable in variables.items() if variable in environ}
    values: dict[str, Any] = {}
    if environ is os.environ:
        values = EnvSettingsSource(
            Settings, env_prefix="HEADRACE_", env_nested_delimiter="_", env_nested_max_split=1
        )()
    else:
        for name, variable in found.items():
            section, _, key = name.rpartition(".")
            (values.setdefault(section, {}) if section else values)[key] = environ[variable]
    return values, {name: f"env {variable}" for name, variable in found.items()}


def known_settings() -> list[str]:
    """The dotted names of all settings, in the order of declaration."""
    names: list[str] = []
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            names.extend(f"{name}.{inner}" for inner in section.model_fields)
        else:
            names.append(name)
    return names


def describe(name: str) -> str:
    """What a setting means, in a few words. Raises KeyError for a name that is no setting."""
    section, _, inner = name.partition(".")
    field = Settings.model_fields[section]
    kind = field.annotation
    if inner and isinstance(kind, type) and issubclass(kind, _Section):
        field = kind.model_fields[inner]
    return field.description or ""


def _check_known(name: str, where: str, known: list[str] | None = None) -> None:
    known = known or known_settings()
    if name in known:
        return
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise InvalidSettings(
        f"{where}: there is no setting named {name}",
        f"Did you mean {nearest}? `headrace config` lists them all.",
    )


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            yield from _leaves(value, f"{name}.")
        else:
            yield f"{prefix}{name}"


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            into[name].update(value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _key_lines(text: str) -> dict[str, int]:
    """The line of each dotted key. Python's TOML reader keeps no positions; keys within multi-line values are
    not keys of ours, so that at worst a line too many is noted."""
    lines: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line)
        key = re.match(r"\s*([\w.\"'-]+)\s*=", line)
        if header:
            section = header[1].strip("\"'") + "."
            lines.setdefault(section[:-1], number)
        elif key:
            lines.setdefault(section + key[1].replace('"', "").replace("'", ""), number)
    return lines


def _refusal(error: ValidationError, origins: Mapping[str, str]) -> InvalidSettings:
    """What pydantic found, as one error: the first in full, and how many more."""
    found = error.errors(include_url=False)
    first = found[0]
    path = [str(part) for part in first["loc"]]
    name = (
        ".".join(path[:2]) if ".".join(path[:2]) in known_settings() else path[0] if path else "the settings"
    )
    if first["type"] == "extra_forbidden":
        _check_known(".".join(path), origins.get(".".join(path), "the arguments"))
    origin = origins.get(name) or origins.get(path[0] if path else "", "")
    why = first["msg"].removeprefix("Value error, ")
    why = why[:1].lower() + why[1:]
    more = f" (and {len(found) - 1} more wrong values)" if len(found) > 1 else ""
    shown = (
        "" if name in ("tokens", "callback_secret") else f" is {first['input']!r}, but"
    )  # a token must not end in a terminal's history
    hint = describe(name) if name in known_settings() else ""
    return InvalidSettings(
        f"{name}{f' ({origin})' if origin else ''}{shown if shown else ':'} {why}{more}",
        f"It is: {hint}." if hint else "`headrace config` lists the settings.",
    )


def function_defaults(settings: Settings) -> dict[str, Any]:
    """The settings of functions that do not say their own, where they differ from the built-in ones."""
    plain = type(settings.defaults)()
    given = settings.defaults
    out: dict[str, Any] = {}
    for name in ("timeout_s", "memory_bytes", "max_age_s"):
        if getattr(given, name) != getattr(plain, name):
            out[name] = getattr(given, name)
    if given.retries != plain.retries:
        out["retry"] = {"retries": given.retries}
    return out
