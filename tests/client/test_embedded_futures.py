"""Futures of a node in this process: who holds them, and what a backlog of them costs."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

from headrace import App
from headrace.runtime import embedded

app = App("open")


@app.function(reserved_concurrency=0)
def never(event: Any) -> Any:
    return event


@app.function
def echo(event: Any) -> Any:
    return event


def test_futures_that_nobody_holds_are_forgotten_and_the_others_get_their_results(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(embedded, "SWEEP_MIN", 50)
    called = threading.Event()
    with app.node(data=tmp_path, workers=1) as client:
        client.pause("open.echo")
        held = [client.submit("open.echo", n) for n in range(5)]
        client.submit("open.echo", "called").add_done_callback(lambda future: called.set())
        dropped = [weakref.ref(client.submit("open.never", n)) for n in range(500)]
        for _ in range(10):  # as more come, those that nobody holds are looked for
            client.submit_many("open.never", range(200))[-1].wait_accepted()
        gc.collect()
        backend = client.backend
        assert isinstance(backend, embedded.NodeBackend)
        assert sum(ref() is not None for ref in dropped) < 250
        assert len(backend._futures) < 1_500, "of 2,506 that were submitted"
        client.resume("open.echo")
        assert [future.result(20) for future in held] == list(range(5))
        assert called.wait(20)
        assert not backend._kept


def test_many_submitted_at_once_are_accepted_in_order(tmp_path: Path) -> None:
    with app.node(data=tmp_path, workers=1) as client:
        futures = client.submit_many("open.echo", iter(range(2_500)))
        ids = [future.wait_accepted(20) for future in futures]
        assert ids == sorted(ids)
        assert [future.result(20) for future in futures] == list(range(2_500))
        assert client.submit_many("open.echo", []) == []
