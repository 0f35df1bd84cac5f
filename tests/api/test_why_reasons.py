"""What `why` says, from facts alone: each thing that can hold something, with its end and its remedy."""

from typing import Any

import msgspec
import pytest

from headrace.runtime.api.why import (
    AHEAD_MAX,
    FunctionFacts,
    Happening,
    InvocationFacts,
    JobFacts,
    NodeFacts,
    ScheduleFacts,
    Why,
    why_function,
    why_invocation,
    why_job,
    why_schedule,
)
from headrace.runtime.model.invocation import Invocation, Record, Status
from headrace.runtime.model.job import Job, JobCounts
from headrace.runtime.model.limits import Held, Limits
from headrace.runtime.model.spec import JobSpec
from headrace.runtime.store.protocol import Backfill, Closure, Deployment, ScheduleState

NOW = 1_800_000_000.0
NODE = NodeFacts(name="here#1", version="v2", workers=2, busy=0)
ID = "0000000000000007"


def function(**given: Any) -> FunctionFacts:
    return FunctionFacts(**{"name": "shop.total", "loaded": True, **given})


def record(
    status: Status = Status.WAITING, *, attempts: int = 0, due_in: float = 0.0, **given: Any
) -> Record:
    places = {name: given.pop(name) for name in ("job", "stage", "index", "flow") if name in given}
    invocation = Invocation(
        7, "shop.total", places.pop("flow", "shop.total"), b"1", NOW - 5, NOW + due_in, NOW + 3600, **places
    )
    return Record(invocation=invocation, status=status, attempts=attempts, **given)


def ask(found: Record, of: FunctionFacts | None = None, node: NodeFacts = NODE, **given: Any) -> Why:
    return why_invocation(
        InvocationFacts(record=found, function=of or function(), node=node, now=NOW, **given)
    )


def by(why: Why) -> list[str]:
    return [hold.by for hold in why.held_by]


def test_nothing_holds_what_only_waits_for_its_turn() -> None:
    why = ask(record())

    assert (why.kind, why.id, why.state, why.held_by) == ("invocation", ID, "waiting", ())
    assert why.summary == "Nothing holds it: it begins as soon as a worker is free."


def test_a_pause_is_named_with_what_ends_it() -> None:
    [hold] = ask(record(), function(paused=True)).held_by

    assert (hold.by, hold.until, hold.do) == ("paused", None, "headrace functions resume shop.total")


@pytest.mark.parametrize("name", ["function:shop.total", "key:customer-1"])
def test_a_closure_is_named_with_its_reason_and_its_end(name: str) -> None:
    closure = Closure(name=name, until_at=NOW + 30, reason="HTTP 429")
    why = ask(record(), function(closures=(closure,)))

    [hold] = why.held_by
    assert (hold.by, hold.until) == ("closed", NOW + 30)
    assert name.replace(":", " ") in hold.detail
    assert "HTTP 429" in hold.detail
    assert "until 2027-01-15T08:00:30Z" in why.summary


def test_a_failed_attempt_waits_for_its_backoff_and_nothing_else_is_foretold() -> None:
    found = record(
        attempts=1, due_in=4, error={"code": "function_error", "type": "ValueError", "message": "x"}
    )
    why = ask(found, function(limits=Limits(concurrency=1), running=1), attempts_max=3)

    [hold] = why.held_by
    assert (hold.by, hold.until) == ("backoff", NOW + 4)
    assert hold.do == f"headrace invocations cancel {ID}"


def test_a_delay_is_not_called_a_backoff() -> None:
    assert by(ask(record(due_in=60))) == ["delay"]


def test_a_delay_beyond_the_events_age_is_pointed_out() -> None:
    assert "expires before that" in ask(record(due_in=7200)).summary


def test_concurrency_says_how_much_runs_of_how_much_may() -> None:
    [hold] = ask(record(), function(limits=Limits(concurrency=3), running=3)).held_by

    assert hold.by == "concurrency"
    assert hold.detail == "3 of 3 that may run at once of shop.total"
    assert hold.do == "raise reserved_concurrency of shop.total"


def test_a_reserved_concurrency_of_zero_stops_it() -> None:
    [hold] = ask(record(), function(limits=Limits(concurrency=0))).held_by

    assert hold.by == "concurrency"
    assert "reserved_concurrency is 0" in hold.detail


def test_what_other_nodes_run_counts_too() -> None:
    held = function(limits=Limits(concurrency=4), running=1, held=Held(by="concurrency"))

    assert ask(record(), held).held_by[0].detail.startswith("4 of 4")


def test_room_below_a_limit_holds_nothing() -> None:
    assert ask(record(), function(limits=Limits(concurrency=3, key_concurrency=2), running=2)).held_by == ()


def test_key_concurrency_and_a_jobs_own_limit_are_told_apart() -> None:
    keyed = ask(record(flow="shop.total#a"), function(limits=Limits(key_concurrency=1), flow_running=1))
    of_job = ask(record(job=9, flow="job:9"), function(flow_limit=2, flow_running=2))

    assert keyed.held_by[0].detail == "1 of 1 that may run at once of this key"
    assert of_job.held_by[0].detail == "2 of 2 that may run at once of this job"
    assert of_job.held_by[0].do == "raise max_concurrency of shop.total"


def test_a_rate_says_when_the_next_token_comes() -> None:
    held = Held(by="rate", until=NOW + 0.5)
    [hold] = ask(record(), function(limits=Limits(rate=2.0), held=held)).held_by

    assert (hold.by, hold.until, hold.detail) == ("rate", NOW + 0.5, "shop.total begins at most 2 a second")


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (1500.0, "1,500 a second"),
        (2 / 60, "2 a minute"),
        (5 / 3600, "5 an hour"),
        (1 / 7200, "one every 2 h 0 min"),
    ],
)
def test_a_rate_is_said_in_a_unit_in_which_it_is_at_least_one(rate: float, said: str) -> None:
    found = ask(record(), function(limits=Limits(rate=rate), held=Held(by="rate", until=NOW + 0.5)))

    assert found.held_by[0].detail == f"shop.total begins at most {said}"
    assert found.summary.startswith("shop.total begins")  # a name stays as it is written


def test_code_that_is_not_here_is_named_with_the_versions_that_have_it() -> None:
    elsewhere = (Deployment(node="other#1", version="v1", since=NOW - 60),)

    assert (
        "it is in version v1 (served by other#1"
        in ask(record(), function(loaded=False, elsewhere=elsewhere)).held_by[0].detail
    )
    assert "no version that is kept has it" in ask(record(), function(loaded=False)).held_by[0].detail


def test_busy_workers_are_named_with_what_they_do() -> None:
    node = NodeFacts(
        name="here#1", version="v2", workers=2, busy=2, at_work=(("shop.slow", 125.0), ("shop.quick", 0.2))
    )
    [hold] = ask(record(), node=node).held_by

    assert hold.by == "workers"
    assert hold.detail == "all 2 workers are busy (shop.slow for 2 min 5 s, shop.quick for 0.2 s)"


def test_only_a_few_of_many_at_work_are_named() -> None:
    node = NodeFacts(name="n", version="v", workers=9, busy=9, at_work=(("shop.slow", 1.0),) * 9)

    assert "and 4 more" in ask(record(), node=node).held_by[0].detail


def test_the_queue_ahead_is_counted_up_to_a_bound() -> None:
    assert ask(record(), ahead=1).held_by[0].detail == "1 other of shop.total goes first"
    assert "over 1,000 others" in ask(record(), ahead=AHEAD_MAX + 1).held_by[0].detail
    assert "3 with a higher priority than 0" in ask(record(), above=3).held_by[0].detail


def test_a_claim_of_another_node_is_named() -> None:
    assert by(ask(record(node="other#2"))) == ["claimed"]
    assert by(ask(record(node="here#1"))) == []


def test_a_stopping_node_and_a_full_disk_come_first() -> None:
    node = NodeFacts(name="n", version="v", workers=1, busy=1, unready="stopping", unrecorded=3)
    why = ask(record(), function(paused=True), node=node)

    assert by(why) == ["stopping", "storage", "paused", "workers"]
    assert "cannot record 3 outcomes" in why.held_by[1].detail
    assert why.summary.startswith("The node n is stopping")
    assert why.summary.endswith("then: storage, paused, workers.")


def test_what_runs_says_where_since_when_and_until_when_at_most() -> None:
    why = ask(record(attempts=1), running_s=3.0, timeout_s=60.0, attempts_max=3)

    assert why.state == "running"
    [hold] = why.held_by
    assert hold.detail == "attempt 2 of 3 on here#1, for 3.0 s"
    assert hold.until == NOW + 57


def test_what_runs_on_another_node_is_known_from_its_record() -> None:
    [hold] = ask(record(Status.RUNNING, started_at=NOW - 2, node="other#2")).held_by

    assert hold.detail == "attempt 1 of 1 on other#2, for 2.0 s"


@pytest.mark.parametrize(
    ("found", "says", "do"),
    [
        (record(Status.SUCCEEDED, attempts=1, ended_at=NOW), "It succeeded", f"headrace replay {ID}"),
        (
            record(Status.DEAD, attempts=3, ended_at=NOW, error={"type": "ValueError", "message": "bad\nx"}),
            "after 3 attempts: ValueError: bad.",
            f"headrace dead-letters redrive {ID}",
        ),
        (
            record(Status.DEAD, error={"code": "expired", "message": "too old"}),
            "expired: too old, after 0 attempts",
            f"headrace dead-letters redrive {ID}",
        ),
        (
            record(Status.DEAD, attempts=1, job=9),
            "no error is recorded",
            "headrace job redrive 0000000000000009",
        ),
        (
            record(Status.CANCELLED, error={"code": "cancelled", "message": "its job ended"}),
            "It was cancelled: its job ended.",
            "",
        ),
    ],
)  # fmt: skip
def test_what_has_ended_says_how_and_why(found: Record, says: str, do: str) -> None:
    why = ask(found)

    assert why.held_by == ()
    assert says in why.summary
    assert why.do == do


def test_what_happened_is_handed_on() -> None:
    happened = (Happening(attempt=1, at=NOW, outcome="error", error="ValueError: bad"),)

    assert ask(record(), happened=happened).happened == happened


# ---- functions ----


def test_a_function_that_nothing_holds_says_its_books() -> None:
    why = why_function(function(waiting=3, running=1), NODE)

    assert (why.kind, why.state) == ("function", "open")
    assert why.summary == "Nothing holds it: 3 waiting, 1 running here."


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        (function(paused=True), "paused"),
        (function(loaded=False), "not loaded"),
        (function(closures=(Closure(name="function:shop.total", until_at=NOW + 1),)), "closed"),
    ],
)
def test_a_function_is_in_the_state_of_what_holds_it(facts: FunctionFacts, state: str) -> None:
    why = why_function(facts, NODE)

    assert why.state == state
    assert why.held_by


# ---- jobs ----


def job(status: str, **given: Any) -> Job:
    fields = {"chunks": 4, **given}
    return Job(
        id=9,
        function="shop.lengths",
        spec=JobSpec(split={}),
        input={},
        status=status,
        accepted_at=NOW,
        **fields,
    )


def test_a_job_says_how_many_chunks_it_waits_for_and_what_holds_the_next() -> None:
    waiting = ask(record(job=9, flow="job:9"), function(paused=True))
    counts = {0: JobCounts(succeeded=1, running=1, waiting=2)}
    why = why_job(JobFacts(job=job("running"), counts=counts, waiting=waiting))

    assert by(why) == ["chunks", "paused"]
    assert why.held_by[0].detail == "1 of 4 chunks have ended, 1 run, 2 wait"
    assert why.do == "headrace job cancel 0000000000000009"


def test_a_job_that_is_cut_or_reduced_says_so() -> None:
    assert by(why_job(JobFacts(job=job("planning"), counts={}))) == ["planning"]
    counts = {0: JobCounts(succeeded=4), 1: JobCounts(waiting=1)}
    assert "1 step of the reduce" in why_job(JobFacts(job=job("reducing"), counts=counts)).summary


def test_a_failed_job_names_the_chunk_that_failed_it() -> None:
    dead = record(Status.DEAD, job=9, index=2, error={"type": "ValueError", "message": "bad row"})
    failed = job("failed", error={"code": "job_failed", "message": "1 chunk failed"})
    why = why_job(JobFacts(job=failed, counts={0: JobCounts(dead=1)}, dead=dead))

    assert "Because of chunk 2, 0000000000000007: ValueError: bad row." in why.summary
    assert why.do == "headrace job redrive 0000000000000009"
    assert why.held_by == ()


@pytest.mark.parametrize("status", ["succeeded", "cancelled"])
def test_an_ended_job_is_held_by_nothing(status: str) -> None:
    assert why_job(JobFacts(job=job(status), counts={})).held_by == ()


# ---- schedules ----


def schedule(**given: Any) -> ScheduleFacts:
    state = ScheduleState(
        name="shop.total/schedule/0", definition="rate(1 hour); UTC", generation=2, anchor=NOW, **given
    )
    return ScheduleFacts(
        state=state, function=function(), node=NODE, now=NOW, loaded=True, next_at=NOW + 60, misfire="once"
    )


def test_a_schedule_says_when_it_fires_next_and_what_it_does_about_missed_moments() -> None:
    why = why_schedule(schedule(last_due_at=NOW - 60))

    assert (why.state, by(why), why.held_by[0].until) == ("waiting", ["not_due"], NOW + 60)
    assert "It last fired for 2027-01-15T07:59:00Z" in why.summary
    assert "generation 2" in why.summary
    assert "of missed moments the newest fires" in why.summary


def test_a_paused_schedule_says_so_and_what_resumes_it() -> None:
    why = why_schedule(schedule(paused=True))

    assert why.state == "paused"
    assert why.held_by[0].do == "headrace schedule resume shop.total/schedule/0"


def test_a_moment_that_waits_for_an_earlier_ones_end_is_named() -> None:
    why = why_schedule(schedule(queued_at=NOW - 60))

    assert by(why) == ["not_due", "overlap"]
    assert "2027-01-15T07:59:00Z waits" in why.held_by[1].detail


def test_a_backfill_that_runs_is_named_with_its_progress() -> None:
    facts = schedule()
    backfill = Backfill(
        id=255, schedule=facts.state.name, generation=2, from_at=0, until_at=NOW, position=0, concurrency=1,
        again=False, instants=1200, created_at=NOW, fired=1000, present=3,
    )  # fmt: skip
    why = why_schedule(msgspec.structs.replace(facts, backfill=backfill))

    assert "backfill 00000000000000ff has fired 1,000 and passed over 3 of its 1,200 moments" in why.summary


def test_a_schedule_that_the_code_has_no_more_says_so() -> None:
    facts = ScheduleFacts(
        state=schedule().state, function=function(loaded=False), node=NODE, now=NOW, loaded=False
    )

    assert (why_schedule(facts).state, by(why_schedule(facts))) == ("not loaded", ["code"])


def test_a_schedule_without_another_moment_is_finished() -> None:
    facts = ScheduleFacts(state=schedule().state, function=function(), node=NODE, now=NOW, loaded=True)

    assert by(why_schedule(facts)) == ["finished"]


def test_a_paused_function_holds_what_its_schedule_fires() -> None:
    facts = ScheduleFacts(
        state=schedule().state,
        function=function(paused=True),
        node=NODE,
        now=NOW,
        loaded=True,
        next_at=NOW + 1,
    )

    assert by(why_schedule(facts)) == ["not_due", "paused"]
