"""`headrace demo`: drops a file of reviews into a bucket and shows what a node makes of it.

Imports the embedded node and the client. It talks to the node as any client does, and puts a file into a
bucket as anybody may; nothing here is a short cut that a user could not take.
"""

import importlib.util
import json as json_module
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from headrace.runtime.cli.demo.chart import draw_chart
from headrace.runtime.cli.demo.place import check_input, demo_folder, drop, functions_folder, storage_errors
from headrace.runtime.cli.demo.report import near, print_findings, print_places
from headrace.runtime.cli.demo.reviews_file import write_reviews
from headrace.runtime.client.answer import WaitTimeout
from headrace.runtime.client.job import ENDED
from headrace.runtime.clock import SystemClock
from headrace.runtime.code import request_for
from headrace.runtime.embedded import EmbeddedNode
from headrace.runtime.errors import InvalidSettings
from headrace.runtime.settings import Settings, function_defaults

if TYPE_CHECKING:
    from headrace.runtime.client import Client
    from headrace.runtime.client.job import JobHandle

SEED = 20_250_101
TRIGGER_S = 30.0
POLL_S = 0.05
INTERRUPTED = 130


def run_demo(
    *,
    input: Path | None = None,
    data: Path | None = None,
    size_mb: int = 50,
    chart: Path | None = None,
    json: bool = False,
    keep: bool = False,
    workers: int | None = None,
) -> int:
    """Analyse a file of reviews with a node of its own, and print what was found and where it lies.

    Args:
        input: a .csv or .tsv file; made by the demo when None.
        data: the folder of the node's data; `demo-data` when None. Emptied first if an earlier demo made it,
            refused if it holds anything else.
        size_mb: size of the file that the demo makes, 1 to 10,000 MB.
        chart: where the chart is written, as .png, .svg or .pdf; DATA/sentiment.png when None.
        json: print one JSON document on stdout instead of texts; progress then goes to stderr.
        keep: do not empty the folder; a job that an interrupted demo left there is gone on with.
        workers: worker processes; one per core when None.

    Returns: the exit code: 0, or 130 after an interrupt.
    Raises: InvalidSettings for wrong arguments; DataInUse; ReadOnlyStorage; StorageFull; JobFailed if the
        file could not be analysed; WaitTimeout if its upload was not noticed.
    """
    data = data or Path("demo-data")
    chart = chart or data / "sentiment.png"
    _check(size_mb, chart)
    job = check_input(input) if input else "reviews.score"
    console = Console(stderr=json, soft_wrap=not sys.stdout.isatty())
    demo = Demo(console, data=data, workers=workers)
    try:
        with quiet_log(), demo_folder(data, keep=keep), storage_errors(data):
            found = demo.run(job, input, size_bytes=size_mb * 1_000_000, resume=keep)
            drawn = demo.draw(found, chart)
    except KeyboardInterrupt:
        again = f"headrace demo --keep{'' if data == Path('demo-data') else f' --data {data}'}"
        console.print(f"\nStopped. Nothing is lost; go on with: {again}", highlight=False, soft_wrap=True)
        return INTERRUPTED
    if json:
        print(json_module.dumps(demo.document(found, drawn), indent=2))
    else:
        print_findings(console, found["result"], source=found["source"])
        print_places(
            console,
            functions=near(functions_folder()),
            data=data,
            job=found["job_id"],
            result=demo.result_file(found),
            chart=drawn,
            seconds=demo.seconds,
        )
    return 0


class Demo:
    """One run. `seconds` grows as its parts end."""

    def __init__(self, console: Console, *, data: Path, workers: int | None) -> None:
        self.console = console
        self.data = data
        self.workers = workers
        self.seconds: dict[str, float] = {}
        self._clock = SystemClock()

    def run(self, job: str, input: Path | None, *, size_bytes: int, resume: bool) -> dict[str, Any]:
        """Start a node, get the file, upload, watch; what was found: `result, job_id, function, source`."""
        self._say(f"Starting a node on {self.data} with the functions of reviews.py …")
        with reviews_node(self.data, workers=self.workers) as client:
            submitted = next(unfinished(client), None) if resume and input is None else None
            if submitted is None:
                file = self._incoming(input, size_bytes=size_bytes)
                # A name that begins with a dot looks unfinished to a trigger.
                key = input.name.lstrip(".") if input else "reviews.csv"
                submitted = self._upload(client, file, job, key=key)
            else:
                self._say(f"Going on with job {submitted['job_id']}, which was interrupted.")
            handle = client.job(submitted["job_id"])
            with self._timed("analysing"):
                self._watch(handle)
                result = handle.result()
        return {
            "result": result,
            "job_id": submitted["job_id"],
            "function": submitted["function"],
            "source": source_of(submitted),
        }

    def draw(self, found: dict[str, Any], chart: Path) -> Path | None:
        """The chart's path, or None without matplotlib."""
        if importlib.util.find_spec("matplotlib") is None:
            return None
        with self._timed("drawing"):
            chart.parent.mkdir(parents=True, exist_ok=True)
            draw_chart(found["result"], chart, source=found["source"])
        return chart

    def result_file(self, found: dict[str, Any]) -> Path:
        return self.data / "buckets" / "results" / str(found["job_id"]) / "result.json"

    def document(self, found: dict[str, Any], chart: Path | None) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "job_id": found["job_id"],
            "function": found["function"],
            "source": found["source"],
            "result": found["result"],
            "result_file": str(self.result_file(found)),
            "chart": str(chart) if chart else None,
            "data": str(self.data),
            "seconds": {name: round(spent, 3) for name, spent in self.seconds.items()},
        }

    def _incoming(self, input: Path | None, *, size_bytes: int) -> Path:
        """The file to be analysed, on the disk of the bucket but not in it yet."""
        file = self.data / "incoming"
        if input is not None:
            with self._timed("copying"):
                shutil.copyfile(input, file)
            return file
        with (
            self._timed("making the file"),
            self._bar("Making a file of reviews", unit="MB") as (progress, task),
        ):
            progress.update(task, total=size_bytes // 1_000_000)
            write_reviews(
                file, size_bytes, Random(SEED),
                report=lambda written: progress.update(task, completed=min(written, size_bytes) // 1_000_000),
            )  # fmt: skip
        return file

    def _upload(self, client: "Client", file: Path, job: str, *, key: str) -> dict[str, Any]:
        """Put the file into the bucket and wait until its trigger has submitted the job."""
        known = {found["job_id"] for found in client.jobs(function=job)}
        size, begun = file.stat().st_size, self._clock.monotonic()
        put = drop(file, self.data / "buckets" / "inbox", key=key)
        self._say(f"Dropped {size / 1e6:,.1f} MB into the bucket: {put}")
        while True:
            for found in client.jobs(function=job):
                if found["job_id"] not in known:
                    spent = self._clock.monotonic() - begun
                    self.seconds["noticing it"] = spent
                    self._say(
                        f"The upload was noticed after {spent * 1000:,.0f} ms; it started the job {job}."
                    )
                    return found
            if self._clock.monotonic() - begun > TRIGGER_S:
                raise WaitTimeout(f"the upload of {put}", TRIGGER_S)
            client.pause_s(POLL_S)

    def _watch(self, handle: "JobHandle") -> None:
        with self._bar("Scoring", unit="chunks") as (progress, task):
            told = -1
            for state in handle.progress():
                what = {"planning": "Cutting", "reducing": "Adding up"}.get(state["status"], "Scoring")
                total, done = state.get("chunks") or None, state.get("done") or 0
                progress.update(task, total=total, completed=done, description=what)
                if not self.console.is_terminal and total and done != told:
                    told = done
                    self._say(f"{what}: {done} of {total} chunks")

    @contextmanager
    def _bar(self, what: str, *, unit: str) -> Iterator[tuple[Progress, TaskID]]:
        """A progress bar on a terminal; elsewhere one line that says what begins."""
        terminal = self.console.is_terminal
        if not terminal:
            self._say(f"{what} …")
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, disable=not terminal) as progress:
            yield progress, progress.add_task(what, total=None)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = self._clock.monotonic()
        yield
        self.seconds[what] = self._clock.monotonic() - begun

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def unfinished(client: "Client") -> Iterator[dict[str, Any]]:
    """The jobs of the reviews example that have not ended, newest first."""
    for found in client.jobs():
        if found["function"].startswith("reviews.") and found["status"] not in ENDED:
            yield found


def source_of(job: dict[str, Any]) -> str:
    """The name of the file that a job reads, from its input."""
    given = job.get("input")
    address = str(given.get("object") or "") if isinstance(given, dict) else ""
    return address.rpartition("/")[2] or "the upload"


def reviews_node(data: Path, *, workers: int | None) -> EmbeddedNode:
    """A node with the functions of `reviews.py`.

    They are loaded by their path, so that another module of that name does not come between.
    """
    given: dict[str, Any] = {"data": data, "port": 0} | ({} if workers is None else {"workers": workers})
    settings = Settings(**given)
    code = request_for([str(functions_folder() / "reviews.py")], defaults=function_defaults(settings))
    return EmbeddedNode(settings, code)


@contextmanager
def quiet_log() -> Iterator[None]:
    """Have the node's warnings on stderr, and nothing less: stdout is the demo's."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.reset_defaults()


def _check(size_mb: int, chart: Path) -> None:
    if not 1 <= size_mb <= 10_000:
        raise InvalidSettings(f"the size is {size_mb} MB", "Choose 1 to 10,000 MB.")
    if chart.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidSettings(f"{chart} is no chart's name", "End it with .png, .svg or .pdf.")
    if importlib.util.find_spec("vaderSentiment") is None:
        raise InvalidSettings("the demo needs vaderSentiment", "Install it: pip install 'headrace[examples]'")
