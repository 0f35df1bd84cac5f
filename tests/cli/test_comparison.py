"""What a replay is run on, and how its outcome stands beside the recorded one: plain values in and out."""

from headrace.runtime.cli.comparison import Input, Outcome, compare, input_of, recorded, with_etag
from headrace.runtime.model.event import UploadEvent

UPLOAD = UploadEvent.of(
    "inbox", "a b/ü.csv", size=1, etag="e1", sequencer="0", time="2030-01-01T00:00:00Z", version_id="v7"
)
CHUNK = {"stage": "map", "index": 0, "shared": {"bucket": "inbox", "key": "x.csv", "etag": "e1"}}
PLAN = {"stage": "plan", "input": {"object": "s3://inbox/x.csv", "etag": "e1"}}


def error(kind: str, message: str) -> Outcome:
    return Outcome(False, error={"type": kind, "message": message})


def test_the_object_of_an_upload_is_found() -> None:
    assert input_of(dict(UPLOAD)) == Input("inbox", "a b/ü.csv", "e1", "v7")


def test_the_object_of_a_jobs_steps_is_found() -> None:
    assert input_of(CHUNK) == input_of(PLAN) == Input("inbox", "x.csv", "e1")


def test_other_events_are_about_no_object() -> None:
    events = [None, 5, [], {}, {"Records": []}, {"Records": [1, 2]}, {"stage": "reduce", "children": []}]

    assert [input_of(event) for event in events] == [None] * len(events)


def test_a_jobs_step_is_pinned_to_the_state_that_it_is_run_on() -> None:
    assert (
        input_of(with_etag(CHUNK, "e2")) == input_of(with_etag(PLAN, "e2")) == Input("inbox", "x.csv", "e2")
    )
    assert with_etag(dict(UPLOAD), "e2") == UPLOAD


def test_a_record_is_an_outcome_only_after_an_attempt_has_ended() -> None:
    assert recorded({"status": "succeeded", "result": 3}) == Outcome(True, 3)
    assert recorded({"status": "dead", "error": {"type": "E"}}).ok is False
    assert recorded({"status": "waiting", "error": None}).ok is None


def test_equal_results_are_the_same() -> None:
    assert compare(Outcome(True, {"a": 1, "b": 2}), Outcome(True, {"b": 2, "a": 1})).text == "same result"


def test_other_results_are_shown_as_a_difference() -> None:
    verdict = compare(Outcome(True, {"a": 1, "b": 2}), Outcome(True, {"a": 1, "b": 3}))

    assert verdict.same is False
    assert '- "b": 2' in verdict.text
    assert '+ "b": 3' in verdict.text


def test_a_long_difference_is_cut() -> None:
    verdict = compare(Outcome(True, list(range(500))), Outcome(True, list(range(1000, 1500))))

    assert "lines more" in verdict.text
    assert len(verdict.text.splitlines()) < 40


def test_errors_are_the_same_by_type_and_message() -> None:
    assert compare(error("ValueError", "x"), error("ValueError", "x")).text == "same error"
    assert compare(error("ValueError", "x"), error("ValueError", "y")).same is False


def test_a_result_and_an_error_are_set_side_by_side() -> None:
    assert (
        compare(error("ValueError", "x"), Outcome(True, 1)).text == "recorded: ValueError: x; here: a result"
    )
    assert (
        compare(Outcome(True, 1), error("KeyError", "'a'")).text == "recorded: a result; here: KeyError: 'a'"
    )


def test_where_a_jobs_step_put_its_result_is_not_compared() -> None:
    then, now = {"object": "s3://x/1", "value": 5}, {"object": "s3://x/2", "value": 5}

    assert compare(Outcome(True, then), Outcome(True, now), of_job=True).same is True
    assert compare(Outcome(True, then), Outcome(True, now)).same is False


def test_without_an_ended_attempt_there_is_nothing_to_compare() -> None:
    assert compare(Outcome(None), Outcome(True, 1)).same is None
