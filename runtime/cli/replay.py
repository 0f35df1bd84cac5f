"""`headrace replay`: run a past invocation here, on its payload and with its code.

Nothing of it is written into the node's books: it runs in a process of this machine, and its result is only
shown.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.runtime.cli.comparison import Input, Outcome, Verdict, compare, input_of, recorded, with_etag
from headrace.runtime.cli.options import AsJson, Token, Url, connect
from headrace.runtime.cli.output import show_error, show_json
from headrace.runtime.errors import BadRequest, Conflict, Invalid, NoSuchObject, Unknown, UnknownVersion

if TYPE_CHECKING:
    from headrace.runtime.client.client import Client


class ReplayRefused(Conflict):
    """A replay would not be of what ran: (why, what to do)."""

    code = "replay_refused"

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why, hint)
        self.hint = hint


def replay(
    id: Annotated[str, typer.Argument(metavar="ID", help="The invocation's id.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PATHS]...", help="Files and folders of functions, for --code here."),
    ] = None,
    code: Annotated[
        str | None,
        typer.Option(
            "--code",
            metavar="recorded|here",
            help="The version that ran it, or the one in PATHS, ./functions or this folder. Recorded when"
            " there are no PATHS.",
        ),
    ] = None,
    current: Annotated[
        bool, typer.Option("--current", help="Run on its object as it is now, though that has changed.")
    ] = False,
    with_pdb: Annotated[bool, typer.Option("--pdb", help="Look at the exception in a debugger.")] = False,
    at_start: Annotated[
        bool, typer.Option("--break", help="Stop in a debugger at the function's first line.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Let what it writes to buckets reach the node's buckets.")
    ] = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> int:
    """Run a past invocation here, with its payload and its code.

    Its output is shown as it comes, then its result or error, and how that compares with the recorded one.
    Exit code 1 when it failed here.
    """
    chosen = code or ("here" if paths else "recorded")
    if chosen not in ("recorded", "here"):
        raise typer.BadParameter(f"--code is {chosen!r}; it is `recorded` or `here`")
    if paths and chosen == "recorded":
        raise typer.BadParameter("PATHS go with --code here")
    folder = Path(tempfile.mkdtemp(prefix="headrace-replay-"))
    keep = False
    try:
        with connect(url, token) as client:
            record = client.invocation(id)
            facts = _prepare(client, record, folder, chosen, paths or [], current)
            facts["debug"] = "break" if at_start else "pdb" if with_pdb else ""
            report = _run(client.url, token, record, facts, folder, write=write, quiet=as_json)
        keep = bool(report["written"]) and not write
        return _show(record, facts, report, folder if keep else None, as_json)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _prepare(
    client: "Client", record: dict[str, Any], folder: Path, chosen: str, paths: list[str], current: bool
) -> dict[str, Any]:
    """Lay the code and the payload out in the folder; what the report says of them."""
    from headrace.runtime.cli.replaying import PAYLOAD
    from headrace.runtime.code import is_path, request_for
    from headrace.runtime.snapshot import environment, unpack

    notes: list[str] = []
    pinned: dict[str, str] = {}
    id = record["invocation_id"]
    if record["status"] not in ("succeeded", "dead", "cancelled"):
        notes.append(f"it has not ended: it is {record['status']}")
    served = client.code_of(id)
    imports: list[str] = []
    if chosen == "recorded":
        version = served["version"]
        if version is None or not served["kept"]:
            raise UnknownVersion(version or "", served["note"] or "no deployment of that time names one")
        place = folder / "code"
        place.mkdir()
        argument = unpack(client.code(version), place)
        imports = [str(each) for each in sorted(place.iterdir()) if each.is_dir()]
        label = f"version {version}, as served by {served['node']}"
    else:
        given = paths or (["functions"] if Path("functions").is_dir() else ["."])
        for path in given:
            if is_path(path) and not Path(path).exists():
                raise BadRequest(f"there is nothing at {path}", "Name files or folders of functions.")
        argument = request_for(given)
        label = f"here, {', '.join(given)}"
    here = environment()
    for name, version in here.items():
        if served.get(name) and served[name] != version:
            notes.append(f"{name} is {version} here and was {served[name]} there")
    data = client.payload(id)
    payload = json.loads(data)
    found = input_of(payload)
    if found is not None:
        now = _state(client, found.bucket, found.key)
        older = "" if now == found.etag or current else _version_of(client, found)
        if older:
            pinned[found.url] = older
            notes.append(f"{found.url} has changed since: this ran on its version {older}")
            now = found.etag
        if now is None:
            raise ReplayRefused(f"{found.url} is gone", "A replay needs the object: put it back.")
        if found.etag and now != found.etag:
            if not current:
                raise ReplayRefused(
                    f"{found.url} has changed since: its ETag was {found.etag} and is {now}",
                    "--current runs on the object as it is now.",
                )
            notes.append(f"{found.url} has changed since: this ran on it as it is now")
            data = json.dumps(with_etag(payload, now)).encode()
    (folder / PAYLOAD).write_bytes(data)
    return {"argument": argument, "imports": imports, "code": label, "notes": notes, "pinned": pinned}


def _state(client: "Client", bucket: str, key: str) -> str | None:
    """The object's ETag; None when it is gone."""
    from headrace.runtime.client.objects import NodeObjects

    with tempfile.TemporaryDirectory() as empty:
        try:
            return NodeObjects(client, Path(empty)).head(bucket, key).etag
        except (NoSuchObject, Unknown):
            return None


def _version_of(client: "Client", found: Input) -> str:
    """The version that an object had, where its bucket still has it; empty where not."""
    try:
        known = client.object_versions(found.url)
    except Invalid:
        return ""  # folders have no versions
    for each in known:
        if each["version_id"] == found.version_id or (found.etag and each["etag"] == found.etag):
            return str(each["version_id"])
    return ""


def _run(
    url: str,
    token: str | None,
    record: dict[str, Any],
    facts: dict[str, Any],
    folder: Path,
    *,
    write: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Run it in a process of its own, which has this one's terminal."""
    import msgspec

    from headrace.runtime.cli.replaying import OUTCOME, REQUEST, Request
    from headrace.runtime.client.find import find_node
    from headrace.runtime.model.ids import read_id

    number = read_id(record["invocation_id"])
    assert number is not None
    request = Request(
        argument=facts["argument"], imports=facts["imports"], function=record["function"],
        invocation_id=number, attempt=max(record["attempts"], 1), debug=facts["debug"], write=write,
        pinned=facts["pinned"],
    )  # fmt: skip
    (folder / REQUEST).write_bytes(msgspec.msgpack.encode(request))
    found = find_node(url, token=token)
    ours = str(Path(sys.modules["headrace"].__file__ or "").absolute().parents[1])
    imports = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), ours]))
    environment = {
        **os.environ, "HEADRACE_URL": url, "HEADRACE_TOKEN": found.token or "", "PYTHONPATH": imports,
    }  # fmt: skip
    # -P: this folder is not on the import path by itself, since it may hold the code as it is now.
    command = [sys.executable, "-P", "-m", "headrace.runtime.cli.replaying", str(folder)]
    sys.stdout.flush()
    process = subprocess.Popen(command, env=environment, stdout=sys.stderr.fileno() if quiet else None)
    while True:
        try:
            ended = process.wait()
            break
        except KeyboardInterrupt:
            continue  # the terminal has told the function too, and what it makes of it is its outcome
    try:
        report: dict[str, Any] = json.loads((folder / OUTCOME).read_bytes())
    except FileNotFoundError:
        how = f"by signal {-ended}" if ended < 0 else f"with exit code {ended}"
        message = f"the process ended {how} before the function did"
        report = {"error": {"code": "worker_crashed", "message": message}, "written": [], "duration_s": 0.0}
    if report.get("refused"):
        raise ReplayRefused(report["refused"]["message"], report["refused"]["hint"])
    return report


def _show(
    record: dict[str, Any], facts: dict[str, Any], report: dict[str, Any], kept: Path | None, as_json: bool
) -> int:
    error = report.get("error")
    now = Outcome(error is None, report.get("value"), error)
    verdict: Verdict = compare(recorded(record), now, of_job=record.get("job_id") is not None)
    if as_json:
        shown = {
            "invocation_id": record["invocation_id"], "function": record["function"], "code": facts["code"],
            "ok": now.ok, "result": now.result, "error": error, "duration_s": report["duration_s"],
            "same": verdict.same, "comparison": verdict.text, "notes": facts["notes"],
            "written": report["written"], "written_to": str(kept / "objects") if kept else None,
        }  # fmt: skip
        show_json(shown)
        return 0 if now.ok else 1
    print(f"\n{record['function']} {record['invocation_id']}, replayed with the code {facts['code']}")
    for note in facts["notes"]:
        print(f"note: {note}")
    if error is None:
        print(f"result ({report['duration_s']:.3f} s): {json.dumps(now.result, ensure_ascii=False)[:4000]}")
    else:
        print(
            f"error ({report['duration_s']:.3f} s): {str(error.get('stack') or show_error(error)).rstrip()}"
        )
    for item in report["written"]:
        print(f"wrote {item['url']} ({item['size']:,} bytes)")
    if kept is not None:
        print(f"what it wrote is in {kept / 'objects'}, not on the node")
    print(verdict.text)
    return 0 if now.ok else 1
