"""`headrace doctor`: what this machine has for a node, what is missing, and what to do about it.

Imports the standard library and the settings; it starts nothing that outlives it and leaves nothing in the
data folder.
"""

import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import typer

from headrace.runtime.cli.options import AsJson, Config, Token, Url
from headrace.runtime.cli.output import show_json, show_table
from headrace.runtime.errors import HeadraceError, Unreachable
from headrace.runtime.model.size import show_size
from headrace.runtime.settings import Settings, load_settings
from headrace.runtime.store.version import SCHEMA

MEMORY_LEAST = 512 << 20
DISK_LEAST = 1 << 30
FSYNC_SLOW_S = 0.02
FILES_LEAST = 4096
WATCHES_LEAST = 8192
SKEW_MOST_S = 5.0
CLOCK_LEAST = 1_735_689_600.0  # 2025-01-01: a clock before it was never set
PACKAGES = (
    "headrace",
    "msgspec",
    "pydantic",
    "sqlalchemy",
    "starlette",
    "uvicorn",
    "cloudpickle",
    "urllib3",
    "psycopg",
)
CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `status` is `ok`, `warn` (a node runs, with less) or `fail` (it does not
    run well).
    """

    name: str
    status: str
    found: str
    hint: str = ""


def doctor(config: Config = None, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Check this machine, and say what is missing and what to do. Exit code 1 when something fails."""
    settings = load_settings(config=config)
    checks = [check for look in LOOKS for check in look(settings)]
    checks.extend(_node(url, token))
    failed = any(check.status == "fail" for check in checks)
    if as_json:
        show_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        show_table(
            ["CHECK", "STATUS", "FOUND", "WHAT TO DO"],
            [[check.name, check.status, check.found, check.hint] for check in checks],
            empty="",
        )
    if failed:
        raise typer.Exit(1)


def _python(settings: Settings) -> Iterator[Check]:
    found = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Check("python", "ok" if good else "fail", found, "" if good else "Install Python 3.11 or newer.")
    if sys.platform == "win32":
        yield Check(
            "system", "fail", platform.platform(), "Windows is not supported; use Linux, macOS or WSL 2."
        )
    else:
        yield Check("system", "ok", platform.platform())


def _versions(settings: Settings) -> Iterator[Check]:
    shown = []
    for name in PACKAGES:
        try:
            shown.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue  # an optional one; those that are required were needed to get here
    yield Check("versions", "ok", ", ".join(shown))
    if "://" in settings.store and not any(text.startswith("psycopg") for text in shown):
        yield Check("psycopg", "fail", "not installed", "Install it: pip install 'headrace[postgres]'")


def _cores(settings: Settings) -> Iterator[Check]:
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cgroup_text("cpu.max").split()
    shown = f"{cores}, {settings.workers} workers"
    if len(quota) == 2 and quota[0].isdigit() and int(quota[0]) / int(quota[1]) < settings.workers:
        share = int(quota[0]) / int(quota[1])
        yield Check(
            "cores",
            "warn",
            f"{shown}, but the container may use {share:g}",
            f"Set workers to {max(1, int(share))}.",
        )
    else:
        yield Check("cores", "ok", shown)


def _memory(settings: Settings) -> Iterator[Check]:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        yield Check("memory", "warn", "unknown", "The system does not say how much memory it has.")
        return
    limit = _cgroup_text("memory.max").strip()
    if limit.isdigit():
        total = min(total, int(limit))
    needed = max(MEMORY_LEAST, settings.workers * settings.defaults.memory_bytes)
    if total < MEMORY_LEAST:
        yield Check("memory", "fail", show_size(total), f"A node needs at least {show_size(MEMORY_LEAST)}.")
    elif total < needed:
        yield Check(
            "memory", "warn", show_size(total),
            f"All workers may use {show_size(needed)}: lower workers or defaults.memory_bytes.",
        )  # fmt: skip
    else:
        yield Check("memory", "ok", show_size(total))


def _memory_limit(settings: Settings) -> Iterator[Check]:
    from headrace.runtime.pool.limits import in_force

    if in_force() == "none":
        yield Check("memory limit", "warn", "none", "Memory is limited on Linux only.")
    else:
        yield Check("memory limit", "ok", "RLIMIT_DATA, and sampling every 50 ms over each process tree")


def _data(settings: Settings) -> Iterator[Check]:
    folder = settings.data
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
        yield Check(
            "data folder",
            "fail",
            f"{folder} cannot be written",
            "Name another with --data, or mend its owner.",
        )
        return
    yield Check(
        "data folder", "ok", f"{folder.absolute()}{'' if folder.exists() else ' (made at the first start)'}"
    )
    free = shutil.disk_usage(there).free
    yield Check(
        "disk", "ok" if free >= DISK_LEAST else "fail", f"{show_size(free)} free",
        "" if free >= DISK_LEAST else "Free some: a full disk accepts nothing.",
    )  # fmt: skip
    yield _fsync(there)


def _fsync(folder: Path) -> Check:
    """The median time of a durable write, which bounds how fast a lone caller is answered."""
    times = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(20):
                file.write(b"\0" * 4096)
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - began)
    except OSError as error:
        return Check(
            "fsync", "fail", error.strerror or str(error), "The data folder must take durable writes."
        )
    typical = median(times)
    if typical < 0.00002:
        return Check(
            "fsync",
            "warn",
            f"{typical * 1e6:.0f} µs",
            "Too fast to be a disk: is the data folder in memory (tmpfs)?",
        )
    slow = typical > FSYNC_SLOW_S
    return Check(
        "fsync", "warn" if slow else "ok", f"{typical * 1e3:.2f} ms",
        "Every commit waits so long; put the data folder on a faster disk." if slow else "",
    )  # fmt: skip


def _postgres(settings: Settings) -> Iterator[Check]:
    """How the PostgreSQL server is doing, where the store is one."""
    if not settings.store.startswith(("postgresql://", "postgres://")):
        return
    try:
        from headrace.runtime.store.postgres.checkup import CONNECTIONS, checkup
    except ImportError:
        return  # what is missing has been said with the versions
    import psycopg

    from headrace.runtime.clock import SystemClock

    try:
        found = checkup(settings.store, clock=SystemClock())
    except HeadraceError as error:
        hint = (
            error.hint or "Start the server, or mend the address: HEADRACE_STORE, or store in headrace.toml."
        )
        yield Check("postgresql", "fail", str(error), hint)
        return
    except psycopg.Error as error:
        said = error.diag.message_primary or type(error).__name__
        yield Check(
            "postgresql", "fail", said, "The server answers, but not to what a node asks; its log says why."
        )
        return
    yield Check("postgresql", "ok", f"{found.version} at {found.where}")
    if found.others:
        yield Check(
            "tables", "fail", f"{found.others:,} tables of another program",
            "Give Headrace a database of its own: createdb headrace",
        )  # fmt: skip
    elif found.schema:
        good = found.schema == SCHEMA
        yield Check(
            "tables", "ok" if good else "warn", f"schema {found.schema}",
            "" if good else f"This release has schema {SCHEMA}: install the release of the other nodes.",
        )  # fmt: skip
    else:
        yield Check(
            "tables", "ok" if found.may_create else "fail", "none yet (made at the first start)",
            "" if found.may_create else "Let its user make tables: GRANT CREATE, USAGE ON SCHEMA public.",
        )  # fmt: skip
    if found.commit_s is None:
        yield Check(
            "durable commit", "warn", "not measured", "The server takes no writes of this user just now."
        )
    else:
        slow = found.commit_s > FSYNC_SLOW_S
        yield Check(
            "durable commit", "warn" if slow else "ok", f"{found.commit_s * 1e3:.2f} ms",
            "Every answer waits so long: put node and server closer, or its journal on a faster disk."
            if slow else "",
        )  # fmt: skip
    yield from _durability(found.settings)
    few = found.free < CONNECTIONS
    yield Check(
        "connections", "warn" if few else "ok",
        f"{found.free:,} free of {found.settings.get('max_connections', '?')}",
        f"A node opens up to {CONNECTIONS}: raise max_connections." if few else "",
    )  # fmt: skip


def _object_server(settings: Settings) -> Iterator[Check]:
    """Whether the object server answers and lets this node in, where objects are on one; writes nothing."""
    if "://" not in settings.objects:
        return
    from headrace.runtime.clock import SystemClock
    from headrace.runtime.objects.key import SYSTEM_BUCKET
    from headrace.runtime.objects.s3 import S3Store
    from headrace.runtime.objects.s3_endpoint import credentials_from, parse_endpoint

    try:
        store = S3Store(parse_endpoint(settings.objects), credentials_from(), clock=SystemClock(), retries=1)
        where = store.connection.endpoint.base
        buckets = store.buckets()
        began = time.perf_counter()
        made = store.has_bucket(SYSTEM_BUCKET)
        asked_s = time.perf_counter() - began
    except HeadraceError as error:
        yield Check("object server", "fail", str(error), error.hint)
        return
    yield Check("object server", "ok", f"{where}, {len(buckets):,} buckets, {asked_s * 1e3:.1f} ms a request")
    shown = "is there" if made else "is made at the first start"
    yield Check("system bucket", "ok", f"{SYSTEM_BUCKET} {shown}")
    skew = abs(store.connection.ahead_s)
    if skew > SKEW_MOST_S:
        yield Check("object server's clock", "warn", f"{skew:.0f} s from this one", "Let both use NTP.")


def _durability(settings: dict[str, str]) -> Iterator[Check]:
    """Whether what the server has committed outlives a crash of it."""
    weak = {
        "fsync": ("off", "A crash of its machine loses or damages the database: fsync = on"),
        "full_page_writes": ("off", "A crash of its machine may damage the database: full_page_writes = on"),
        "synchronous_commit": (
            "off", "A node turns it on for itself; other programs' newest commits are lost in a crash.",
        ),
    }  # fmt: skip
    for name, (bad, hint) in weak.items():
        value = settings.get(name, "unknown")
        weakened = value == bad
        yield Check(f"postgresql {name}", "warn" if weakened else "ok", value, hint if weakened else "")


def _limits(settings: Settings) -> Iterator[Check]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 0 <= soft < FILES_LEAST
    raised = (
        "the node raises it" if hard < 0 or hard >= FILES_LEAST else f"Raise it: ulimit -n {FILES_LEAST}."
    )
    yield Check("open files", "warn" if few else "ok", f"{soft:,} (at most {hard:,})", raised if few else "")
    for name in ("max_user_watches", "max_user_instances"):
        text = _text(Path("/proc/sys/fs/inotify") / name).strip()
        if not text.isdigit():
            continue
        least = WATCHES_LEAST if name == "max_user_watches" else 16
        few = int(text) < least
        yield Check(
            f"inotify {name.removeprefix('max_user_')}", "warn" if few else "ok", f"{int(text):,}",
            f"Sweeps find the uploads beyond it: sysctl fs.inotify.{name}={least * 8}" if few else "",
        )  # fmt: skip


def _fork(settings: Settings) -> Iterator[Check]:
    if not hasattr(os, "fork") or sys.platform == "darwin":
        yield Check("fork", "warn", "workers are spawned", "On Linux a new worker is ready in a millisecond.")
        return
    began = time.perf_counter()
    try:
        pid = os.fork()
    except OSError as error:
        yield Check("fork", "fail", error.strerror or str(error), "Raise the limit of processes: ulimit -u")
        return
    if pid == 0:
        os._exit(7)
    _, status = os.waitpid(pid, 0)
    good = os.waitstatus_to_exitcode(status) == 7
    yield Check(
        "fork", "ok" if good else "fail", f"{(time.perf_counter() - began) * 1e3:.1f} ms",
        "" if good else "A forked process did not end as it should; is something else killing processes?",
    )  # fmt: skip


def _clock(settings: Settings) -> Iterator[Check]:
    now = time.time()
    shown = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    good = now > CLOCK_LEAST
    yield Check(
        "clock", "ok" if good else "fail", shown, "" if good else "Set the clock; schedules depend on it."
    )


def _port(settings: Settings) -> Iterator[Check]:
    try:
        settings.check_exposure()
    except HeadraceError as error:
        yield Check("exposure", "fail", str(error), error.hint)


def _node(url: str | None, token: str | None) -> Iterator[Check]:
    """Whether a node answers, whether it takes the token, and whether its clock is ours."""
    from email.utils import parsedate_to_datetime

    from headrace.runtime.client.client import Client
    from headrace.runtime.client.find import find_node

    found = find_node(url, token=token)
    with Client(found.url, found.token, timeout_s=5.0) as client:
        try:
            answer = client.backend.request("GET", "/healthz")
            if answer.status != 200:
                yield Check("node", "fail", f"{found.url} answers {answer.status}", "Its log says why.")
                return
            if "date" in answer.headers:
                skew = abs(parsedate_to_datetime(answer.headers["date"]).timestamp() - time.time())
                if skew > SKEW_MOST_S:
                    yield Check(
                        "node's clock", "warn", f"{skew:.0f} s from this one", "Let both machines use NTP."
                    )
            client.stats()
        except Unreachable as error:
            # No node is no fault of the machine: the usual use of this command is before the first start.
            yield Check(
                "node", "warn", str(error), "Start one with `headrace serve`, or name one with --url."
            )
        except HeadraceError as error:
            yield Check("node", "fail", str(error), error.hint)
        else:
            yield Check("node", "ok", f"{found.url} ({found.source})")


LOOKS: tuple[Callable[[Settings], Iterator[Check]], ...] = (
    _python, _versions, _cores, _memory, _memory_limit, _data, _postgres, _object_server, _limits, _fork,
    _clock, _port,
)  # fmt: skip


def _own_cgroup() -> Path:
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        if line.startswith("0::"):
            return CGROUPS / line[3:].lstrip("/")
    return CGROUPS


def _cgroup_text(name: str) -> str:
    return _text(_own_cgroup() / name) or _text(CGROUPS / name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
