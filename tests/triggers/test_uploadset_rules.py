"""The pure rules of sets: patterns, manifests, conditions, and what is decided from them."""

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from headrace import Count, Manifest, Marker, Quiet, UploadSet, UploadSetEvent
from headrace.runtime.errors import BadRequest, InvalidFunction
from headrace.triggers.uploadset import Condition
from headrace.triggers.uploadset.condition import Facts, Named, SetFile, condition_from
from headrace.triggers.uploadset.decision import (
    Action,
    Incomplete,
    Late,
    Policy,
    SetMemory,
    decide,
    quiet_s,
)
from headrace.triggers.uploadset.look import Fingerprint
from headrace.triggers.uploadset.names import BadManifest, read_manifest
from headrace.triggers.uploadset.pattern import KeyPattern


def files(*keys: str, etag: str = "e", size: int = 1) -> list[SetFile]:
    return [SetFile(key, etag, size) for key in sorted(keys)]


# ---- patterns ----

SEGMENT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=12)


@given(day=SEGMENT, rest=SEGMENT)
@example(day="a\nb", rest="*.csv")
def test_a_capture_holds_what_stands_in_its_place(day: str, rest: str) -> None:
    pattern = KeyPattern("in/{day}/*.csv", "a test")

    assert pattern.match(f"in/{day}/{rest}.csv") == {"day": day}
    assert pattern.match(f"in/{day}/more/{rest}.csv") is None
    assert f"in/{day}/{rest}.csv".startswith(pattern.beginning({"day": day}))


@pytest.mark.parametrize(
    ("text", "key", "found"),
    [
        ("{day}/*.csv", "2026-01-31/a.csv", {"day": "2026-01-31"}),
        ("{day}/*.csv", "/a.csv", None),
        ("{region}/{day}-{hour}.csv", "eu/2026-01-31-07.csv",
         {"region": "eu", "day": "2026-01-31", "hour": "07"}),
        ("{day}/{day}-*.csv", "a/a-1.csv", {"day": "a"}),
        ("{day}/{day}-*.csv", "a/b-1.csv", None),
        ("**/{run}/part-[0-9]*", "x/y/r1/part-0", {"run": "r1"}),
        ("**/{run}/part-[!0-9]*", "x/y/r1/part-0", None),
        ("[{]a}/{b}", "{a}/c", {"b": "c"}),
        ("**", "any/key", {}),
    ],
)  # fmt: skip
def test_keys_match_as_a_whole(text: str, key: str, found: dict[str, str] | None) -> None:
    assert KeyPattern(text, "a test").match(key) == found


@pytest.mark.parametrize(
    ("text", "values", "beginning", "folder"),
    [
        ("{day}/*.csv", {"day": "d"}, "d/", "{day}/"),
        ("in/{region}/{day}-*.csv", {"region": "eu", "day": "d"}, "in/eu/d-", "in/{region}/"),
        ("in/{region}/{day}/*", {"day": "d"}, "in/", "in/{region}/{day}/"),
        ("**/{day}/x", {"day": "d"}, "", ""),
    ],
)
def test_a_set_begins_where_its_pattern_is_known(
    text: str, values: dict[str, str], beginning: str, folder: str
) -> None:
    pattern = KeyPattern(text, "a test")

    assert pattern.beginning(values) == beginning
    assert pattern.folder() == folder


# ---- the trigger ----


@pytest.mark.parametrize(
    "arguments",
    [
        {"pattern": "{day}/*.csv", "by": "week"},
        {"pattern": "{a day}/*.csv"},
        {"pattern": "{}/*.csv"},
        {"complete": "_SUCCESS"},
        {"complete": Marker("*.done"), "pattern": "{day}/*.csv"},
        {"complete": Marker("_SUCCESS"), "pattern": "{day}-*.csv"},
        {"complete": Marker("_SUCCESS"), "pattern": "{region}/{day}/*.csv", "by": "day"},
        {"complete": Marker("done/{day}"), "pattern": "{region}/{day}/*.csv"},
        {"late": "never"},
        {"incomplete": "drop"},
        {"timeout": "soon"},
        {"existing": "maybe"},
        {"name": ""},
    ],
)
def test_what_cannot_work_is_refused_when_it_is_declared(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidFunction):
        UploadSet("inbox", **{"complete": Count(1), **arguments})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Count(0),
        lambda: Count(True),
        lambda: Marker("a/"),
        lambda: Quiet(0),
        lambda: Quiet("soon"),
        lambda: Count(1) | 3,
    ],
)
def test_what_is_no_condition_is_refused(make: Any) -> None:
    with pytest.raises(InvalidFunction):
        make()


def test_a_trigger_travels_as_its_fields() -> None:
    trigger = UploadSet(
        "inbox", pattern="{region}/{day}/*.csv", by=["day", "region"],
        complete=Count(24) & Quiet("1 minute") | Manifest("manifest.json") | Marker("done/{region}-{day}"),
        late="fire", timeout="6 hours", incomplete="fire", existing="run", name="days",
    )  # fmt: skip
    again = UploadSet.from_fields(json.loads(json.dumps(trigger.fields())))

    assert again == trigger
    assert repr(again) == repr(trigger)
    assert again.timeout_s == 6 * 3600
    assert again.place("eu/d1/a.csv") == again.place("done/eu-d1").__class__("d1/eu", False)
    assert again.marker_keys("d1/eu") == {
        "manifest.json": "eu/d1/manifest.json", "done/{region}-{day}": "done/eu-d1",
    }  # fmt: skip
    assert again.manifest_keys("d1/eu") == ["eu/d1/manifest.json"]


def test_a_marker_is_no_file_even_where_the_pattern_matches_it() -> None:
    trigger = UploadSet("inbox", pattern="{day}/*", complete=Marker("_SUCCESS"))

    marker, file = trigger.place("d/_SUCCESS"), trigger.place("d/a")
    assert marker is not None
    assert file is not None
    assert (marker.name, marker.is_marker, file.is_marker) == ("d", True, False)


def test_a_sample_is_the_event_of_a_complete_set() -> None:
    trigger = UploadSet("inbox", pattern="{region}/{day}/*.csv", complete=Count(2) & Manifest("m") & Quiet(9))
    event = UploadSetEvent(UploadSet.sample({}, like=trigger, name="a/b/0", moment=0.0, id="i"))
    assert (event.complete, event.set, event.count, event["id"]) == (True, "example/example", 2, "i")
    options = {"set": ["eu/d1"], "key": ["eu/d1/b.csv", "eu/d1/a.csv"], "size": ["7"]}
    event = UploadSetEvent(UploadSet.sample(options, like=trigger, name="a/b/0", moment=0.0, id="i"))
    assert (event.by, event.size) == ({"region": "eu", "day": "d1"}, 14)
    assert [file["key"] for file in event.files()] == ["eu/d1/a.csv", "eu/d1/b.csv"]

    assert UploadSetEvent(UploadSet.sample({}, like=None, name="", moment=0.0, id="i")).set == "example"
    for wrong in ({"set": ["eu"]}, {"key": ["eu/d1/a.csv"]}, {"set": ["eu/d1"], "key": ["eu/d1/m"]}):
        with pytest.raises(BadRequest):
            UploadSet.sample(wrong, like=trigger, name="a/b/0", moment=0.0, id="i")


# ---- manifests ----


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('["a.csv", "day/b.csv", "s3://inbox/other/c.csv"]', ["day/a.csv", "day/b.csv", "other/c.csv"]),
        ('{"files": [{"key": "day/a.csv", "size": 3}]}', ["day/a.csv"]),
        ('{"entries": [{"url": "s3://inbox/day/a.csv", "mandatory": true}]}', ["day/a.csv"]),
        ("# a list\na.csv\r\n\n  b.csv\n", ["day/a.csv", "day/b.csv"]),
        ("", []),
        ("\ufeff[]", []),
    ],
)
def test_a_manifest_names_files(text: str, keys: list[str]) -> None:
    assert [one.key for one in read_manifest(text.encode(), bucket="inbox", folder="day/")] == keys


def test_a_manifest_may_say_what_its_files_must_be() -> None:
    text = json.dumps({"files": [{"name": "a", "etag": '"e1"', "meta": {"content_length": 7}}]})

    [named] = read_manifest(text.encode(), bucket="inbox", folder="")
    assert named == Named("a", 7, '"e1"')
    complete = Manifest("m")
    for file, met in (
        (SetFile("a", "e1", 7), True),
        (SetFile("a", "e1", 8), False),
        (SetFile("a", "e2", 7), False),
    ):
        facts = Facts(files=[file], markers=frozenset(["m"]), manifests={"m": [named]})
        assert complete.judge(facts, {"m": "m"}).complete is met


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"files": 3}', "[3]", "[{}]", '["s3://other/a"]', '[{"key": "a", "size": "3"}]', "\xff"],
)
def test_a_manifest_that_cannot_be_used_says_why(text: str) -> None:
    with pytest.raises(BadManifest, match=r"\w"):
        read_manifest(text.encode("latin-1"), bucket="inbox", folder="")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    try:
        named = read_manifest(data, bucket="inbox", folder="f/")
    except BadManifest:
        return
    assert all(one.key for one in named)


# ---- conditions ----

NAMES = st.sampled_from(["a", "b", "c", "d"])
FACTS = st.builds(
    lambda keys, markers, listed, quiet: Facts(
        files=files(*keys), markers=frozenset(markers), quiet_s=quiet,
        manifests={"m": [Named(key) for key in listed]} if "m" in markers else {},
    ),
    st.sets(NAMES), st.sets(st.sampled_from(["m", "done"])), st.lists(NAMES), st.floats(0, 100),
)  # fmt: skip
LEAVES = st.one_of(
    st.builds(Count, st.integers(1, 4)),
    st.just(Marker("done")),
    st.just(Manifest("m")),
    st.builds(Quiet, st.floats(1, 50)),
)
CONDITIONS = st.recursive(
    LEAVES, lambda inner: st.one_of(st.builds(lambda a, b: a | b, inner, inner),
                                    st.builds(lambda a, b: a & b, inner, inner)), max_leaves=5,
)  # fmt: skip
KEYS = {"done": "done", "m": "m"}


def is_met(condition: Condition, facts: Facts) -> bool:
    """The same in plain words."""
    fields = condition.fields()
    there = {file.key for file in facts.files}
    match fields["kind"]:
        case "count":
            return len(there) >= fields["files"]
        case "marker":
            return "done" in facts.markers
        case "manifest":
            return "m" in facts.manifests and {one.key for one in facts.manifests["m"]} <= there
        case "quiet":
            return bool(there) and facts.quiet_s >= fields["period"]
        case "any":
            return any(is_met(condition_from(each), facts) for each in fields["conditions"])
    return all(is_met(condition_from(each), facts) for each in fields["conditions"])


@given(condition=CONDITIONS, facts=FACTS)
def test_a_condition_is_met_exactly_when_its_words_say_so(condition: Condition, facts: Facts) -> None:
    verdict = condition.judge(facts, KEYS)

    assert verdict.complete is is_met(condition, facts)
    assert verdict.why
    assert condition_from(condition.fields()) == condition
    assert not set(verdict.files) - set(facts.files)
    if verdict.complete:
        assert verdict.missing_count == 0
        assert verdict.wait_s is None


@given(condition=CONDITIONS, facts=FACTS)
def test_a_wait_is_as_long_as_time_alone_needs(condition: Condition, facts: Facts) -> None:
    wait_s = condition.judge(facts, KEYS).wait_s
    moments = [facts.quiet_s + more for more in ((wait_s or 0) + 0.001, 1000.0)]
    later = [
        Facts(files=facts.files, markers=facts.markers, manifests=facts.manifests, quiet_s=moment)
        for moment in moments
    ]

    if wait_s is not None:
        assert wait_s > 0
        assert is_met(condition, later[0])
    elif not is_met(condition, facts):
        assert not is_met(condition, later[1])


def test_a_manifest_says_which_files_belong_to_the_set() -> None:
    facts = Facts(
        files=files("a", "b", "c"), markers=frozenset(["m"]), manifests={"m": [Named("a"), Named("c")]}
    )

    for condition in (Manifest("m"), Manifest("m") | Count(3), Count(1) & Manifest("m")):
        assert [file.key for file in condition.judge(facts, KEYS).files] == ["a", "c"]
    assert len((Count(3) | Manifest("m")).judge(facts, KEYS).files) == 3


def test_what_is_missing_is_named() -> None:
    facts = Facts(
        files=files("a"), markers=frozenset(["m"]), manifests={"m": [Named("a"), Named("b"), Named("c")]}
    )
    verdict = Manifest("m").judge(facts, KEYS)

    assert (verdict.missing, verdict.missing_count) == (("b", "c"), 2)
    assert verdict.why == "1 of 3 files of the manifest m"
    assert Marker("done").judge(facts, KEYS).missing == ("done",)
    unread = Facts(markers=frozenset(["m"]), unread={"m": "it is not JSON"})
    assert "it is not JSON" in Manifest("m").judge(unread, KEYS).why


@given(st.lists(st.tuples(NAMES, st.text(max_size=3), st.integers(0, 9)), max_size=6), st.randoms())
def test_a_fingerprint_does_not_depend_on_the_order(rows: list[tuple[str, str, int]], chance: Any) -> None:
    one, other = Fingerprint(), Fingerprint()
    for row in rows:
        one.add(*row)
    chance.shuffle(rows)
    for row in rows:
        other.add(*row)
    assert str(one) == str(other)
    one.add("z", "e", 1)
    assert str(one) != str(other)


# ---- decisions ----


class SetLife(RuleBasedStateMachine):
    """One set over its life: what is decided is remembered, as the store does it, or lost, as in a crash."""

    policy = Policy(late=Late.FIRE, incomplete=Incomplete.FIRE, timeout_s=60.0, gather_s=2.0, keeps_time=True)
    condition = Count(3) | Quiet(20)

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.memory: SetMemory | None = None
        self.there: dict[str, int] = {}
        self.told: list[tuple[Action, frozenset[tuple[str, int]]]] = []

    @rule(key=st.sampled_from("abcde"))
    def put(self, key: str) -> None:
        self.there[key] = self.there.get(key, 0) + 1

    @rule(seconds=st.sampled_from([0.5, 1.9, 2.1, 19.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_lost=st.booleans())
    def look(self, is_lost: bool) -> None:
        if not self.there:
            return
        fingerprint = Fingerprint()
        for key, version in self.there.items():
            fingerprint.add(key, str(version), 1)
        seen = str(fingerprint)
        found = [SetFile(key, str(version), 1) for key, version in sorted(self.there.items())]
        verdict = self.condition.judge(Facts(files=found, quiet_s=quiet_s(self.memory, seen, self.now)), {})
        decision = decide(self.memory, seen, verdict, policy=self.policy, now=self.now)
        assert (decision.action is Action.NOTHING) == (decision.memory is None)
        if decision.memory is None or is_lost:  # a crash before the commit: nothing was told, nothing noted
            return
        self.memory = decision.memory
        if decision.action is not Action.NOTE:
            self.told.append((decision.action, frozenset(self.there.items())))
        if verdict.complete or self.now - self.memory.first_at >= 60.0:
            assert self.told
        if self.told and self.now - self.memory.changed_at >= 2.0:
            assert self.told[-1][1] == frozenset(self.there.items()), "a late file was not told of"

    @invariant()
    def it_is_told_once(self) -> None:
        firsts = [action for action, _ in self.told if action in (Action.COMPLETE, Action.INCOMPLETE)]
        assert len(firsts) <= 1
        if self.told:
            assert self.told[0][0] is not Action.LATE
        states = [state for _, state in self.told]
        assert len(set(states)) == len(states), "the same state was told of twice"


def test_a_set_is_told_once_and_in_time_over_any_life() -> None:
    run_state_machine_as_test(
        SetLife, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )


QUIET_POLICY = Policy(keeps_time=True)


def judge(condition: Condition, count: int, quiet: float = 0.0) -> Any:
    return condition.judge(Facts(files=files(*"abcdefgh"[:count]), quiet_s=quiet), {})


def test_quiet_time_counts_from_when_a_change_was_seen() -> None:
    condition = Quiet(10)
    first = decide(None, "s1", judge(condition, 1), policy=QUIET_POLICY, now=100.0)
    assert (first.action, first.wait_s) == (Action.NOTE, 10.0)

    assert quiet_s(first.memory, "s1", 107.0) == 7.0
    assert quiet_s(first.memory, "s2", 107.0) == 0.0
    second = decide(first.memory, "s2", judge(condition, 2), policy=QUIET_POLICY, now=107.0)
    assert second.memory is not None
    assert (second.memory.first_at, second.memory.changed_at) == (100.0, 107.0)
    done = decide(second.memory, "s2", judge(condition, 2, 10.0), policy=QUIET_POLICY, now=117.0)
    assert done.action is Action.COMPLETE


def test_time_runs_out_from_the_first_file_on() -> None:
    policy = Policy(timeout_s=60.0)
    first = decide(None, "s1", judge(Count(3), 1), policy=policy, now=100.0)
    assert (first.action, first.wait_s) == (Action.NOTE, 60.0)
    more = decide(first.memory, "s2", judge(Count(3), 2), policy=policy, now=159.0)
    assert (more.action, more.wait_s) == (Action.NOTE, 1.0)
    late = decide(more.memory, "s2", judge(Count(3), 2), policy=policy, now=160.0)
    assert late.action is Action.INCOMPLETE


def fired(settled: str = "s1") -> SetMemory:
    return SetMemory(seen=settled, first_at=1.0, changed_at=1.0, told=1, settled=settled, known="k")


def test_late_files_are_ignored_once_and_for_all() -> None:
    ignored = decide(fired(), "s2", judge(Count(1), 2), policy=Policy(), now=100.0)
    assert ignored.action is Action.NOTE
    assert ignored.memory is not None
    assert (
        decide(ignored.memory, "s2", judge(Count(1), 2), policy=Policy(), now=900.0).action is Action.NOTHING
    )


@pytest.mark.parametrize("late", [Late.FIRE, Late.AGAIN, Late.DEAD])
def test_late_files_are_gathered_and_told_of_once(late: Late) -> None:
    policy = Policy(late=late)
    noted = decide(fired(), "s2", judge(Count(1), 2), policy=policy, now=100.0)
    assert (noted.action, noted.wait_s) == (Action.NOTE, 2.0)
    assert decide(noted.memory, "s2", judge(Count(1), 2), policy=policy, now=101.0).action is Action.NOTHING
    told = decide(noted.memory, "s2", judge(Count(1), 2), policy=policy, now=102.0)
    assert told.action is Action.LATE
    assert told.memory is not None
    assert told.memory.told == 2
    assert decide(told.memory, "s2", judge(Count(1), 2), policy=policy, now=900.0).action is Action.NOTHING


def test_the_whole_set_comes_again_only_when_it_is_complete_again() -> None:
    policy = Policy(late=Late.AGAIN)
    noted = decide(fired(), "s2", judge(Count(3), 2), policy=policy, now=100.0)
    assert (noted.action, noted.wait_s) == (Action.NOTE, None)
    assert decide(noted.memory, "s2", judge(Count(3), 2), policy=policy, now=900.0).action is Action.NOTHING
    done = decide(noted.memory, "s3", judge(Count(3), 3), policy=policy, now=901.0)
    assert (done.action, done.wait_s) == (Action.NOTE, 2.0)
    assert decide(done.memory, "s3", judge(Count(3), 3), policy=policy, now=903.0).action is Action.LATE


def test_a_set_from_before_the_trigger_is_passed_over() -> None:
    old = decide(None, "s1", judge(Count(1), 1), policy=Policy(), now=100.0, is_old=True)
    assert old.action is Action.CLOSE
    assert old.memory is not None
    assert (old.memory.told, old.memory.closed) == (0, True)
    assert decide(old.memory, "s1", judge(Count(1), 1), policy=Policy(), now=200.0).action is Action.NOTHING
    late = decide(
        old.memory, "s2", judge(Count(1), 2), policy=Policy(late=Late.FIRE, gather_s=0.0), now=200.0
    )
    assert late.action is Action.LATE
