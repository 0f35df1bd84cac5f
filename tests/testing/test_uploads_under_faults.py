"""Whatever goes wrong, in whatever order: each object that is there was received, and none was twice."""

from collections import Counter
from contextlib import suppress

import sample_app
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from headrace import UploadEvent
from headrace.runtime.errors import StoreUnavailable
from headrace.runtime.model.invocation import Status
from headrace.testing import AppUnderTest

KEYS = st.sampled_from(["a.txt", "b c.txt", "d/é+%.txt"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS),
        st.tuples(st.just("put"), KEYS),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("lose"), st.integers(1, 2)),
        st.tuples(st.just("repeat"), st.integers(1, 2)),
        st.tuples(st.just("store"), st.integers(0, 6)),
        st.tuples(st.just("worker"), st.booleans()),
        st.tuples(st.just("die"), st.tuples(st.integers(0, 6), st.booleans())),
        st.tuples(st.just("idle"), st.none()),
        st.tuples(st.just("crash"), st.none()),
        st.tuples(st.just("restart"), st.none()),
        st.tuples(st.just("advance"), st.sampled_from([1.0, 40.0, 301.0])),
    ),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example([("put", "a.txt"), ("crash", None), ("put", "a.txt"), ("advance", 40.0), ("restart", None)])
@example([("lose", 1), ("put", "a.txt"), ("idle", None), ("put", "a.txt"), ("store", 0), ("advance", 301.0)])
@example([("put", "a.txt"), ("idle", None), ("delete", "a.txt"), ("restart", None), ("put", "a.txt")])
@given(STEPS)
def test_every_object_is_received_once(steps: list[tuple[str, object]]) -> None:
    with AppUnderTest(sample_app.app) as app:
        for step, what in steps:
            match step, what:
                case "put", str(key):
                    app.put("inbox", key, "x")
                case "delete", str(key):
                    app.objects.delete("inbox", key)
                case "lose", int(times):
                    app.faults.lose_notifications(times)
                case "repeat", int(times):
                    app.faults.repeat_notifications(times)
                case "store", int(passed):
                    app.faults.fail_store(after=passed)
                case "die", (int(passed), bool(recorded)):
                    app.faults.crash_node(after=passed, recorded=recorded)
                case "worker", bool(after):
                    app.faults.crash_worker("sample.received", after=after)
                case "idle", _:
                    app.run_until_idle()
                case "crash", _:
                    if app.is_up:
                        app.crash()
                case "restart", _:
                    with suppress(StoreUnavailable):  # a fault that was waiting strikes while it starts
                        app.restart()
                case "advance", float(seconds):
                    app.clock.advance(seconds)
        app.faults.clear()
        app.restart()
        app.clock.advance(3600)

        found = app.invocations("sample.received")
        events = [UploadEvent(event) for event in app.events("sample.received")]
        received = Counter((event.key, event.etag) for event in events)
        there = {(info.key, info.etag) for info in app.objects.iterate("inbox")}
        assert {record.status for record in found} <= {Status.SUCCEEDED, Status.DEAD}
        assert max(received.values(), default=1) == 1
        assert there <= set(received)
        app.verify()
