"""The pool's values: frames, the page, results, failures and kept output, without any process."""

import datetime
import decimal
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.runtime.errors import UnserialisableResult
from headrace.runtime.pool import capture
from headrace.runtime.pool.failure import MESSAGE_CHARS_MAX, STACK_BYTES_MAX, describe
from headrace.runtime.pool.frame import FRAME_BYTES_MAX, FrameReader, FrameTooLarge, pack
from headrace.runtime.pool.page import BEGUN, REVOKE, STARTED, Page
from headrace.runtime.pool.result import encode_result

messages = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(max_size=300),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.lists(messages, max_size=8), st.lists(st.integers(1, 40), max_size=60))
def test_a_stream_cut_anywhere_gives_the_same_messages(sent: list, cuts: list[int]) -> None:
    stream = b"".join(map(pack, sent))
    reader = FrameReader()
    received = []

    at = 0
    for cut in cuts:
        received += reader.feed(stream[at : at + cut])
        at += cut
    received += reader.feed(stream[at:])

    assert received == sent


def test_a_frame_that_claims_too_much_is_refused() -> None:
    with pytest.raises(FrameTooLarge):
        FrameReader().feed((FRAME_BYTES_MAX + 1).to_bytes(4, "little"))


def test_what_was_not_begun_can_be_revoked_and_the_rest_is_told(tmp_path: Path) -> None:
    page, descriptor = Page.make(tmp_path)
    page.words[BEGUN] = 7

    begun = page.revoke_after_begun()

    assert (begun, page.words[REVOKE]) == (7, 8)
    page.lift()
    assert page.words[REVOKE] > 2**62
    page.close()
    os.close(descriptor)


def test_whatever_the_interleaving_no_item_is_run_and_taken_back(tmp_path: Path) -> None:
    """A worker and a node race for items; what the node took is never run, and the rest is run or skipped."""
    from headrace.runtime.pool.page import fence

    for _ in range(200):
        page, descriptor = Page.make(tmp_path)
        ran: list[int] = []

        def work(page: Page = page, ran: list[int] = ran) -> None:
            for seq in range(1, 200):
                page.words[BEGUN] = seq
                fence()
                if seq >= page.words[REVOKE]:
                    continue
                ran.append(seq)

        worker = threading.Thread(target=work)
        worker.start()
        begun = page.revoke_after_begun()
        worker.join()

        assert all(seq <= begun for seq in ran)
        page.close()
        os.close(descriptor)


def test_an_item_is_told_to_execute_only_between_its_start_and_its_end(tmp_path: Path) -> None:
    page, descriptor = Page.make(tmp_path)

    before = page.executing()
    page.words[BEGUN], page.reals[STARTED] = 3, 12.5
    during = page.executing()
    page.reals[STARTED] = 0.0
    after = page.executing()

    assert (before, during, after) == (None, (3, 12.5), None)
    page.close()
    os.close(descriptor)


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (float("nan"), "$", "float"),
        (float("inf"), "$", "float"),
        ({"a": [1, {"b": -float("inf")}]}, "$.a[1].b", "float"),
        ({"a b": None, "c d": (float("nan"),)}, '$["c d"][0]', "float"),
        ([object()], "$[0]", "object"),
        ({"when": {(1, 2): 3}}, "$.when", "tuple"),
        ({"text": "\ud800"}, "$.text", "str"),
        ({"set": {1.5, float("nan")}}, "$.set[]", "float"),
        ((number for number in ()), "$", "generator"),
    ],
)
def test_the_place_and_type_of_what_json_cannot_hold_is_found(value: object, path: str, kind: str) -> None:
    with pytest.raises(UnserialisableResult) as caught:
        encode_result(value)

    assert (caught.value.detail["path"], caught.value.detail["type"]) == (path, kind)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)

    with pytest.raises(UnserialisableResult, match="contains itself"):
        encode_result(loop)


def test_common_values_have_their_usual_json() -> None:
    value = {
        "decimal": decimal.Decimal("1.50"),
        "moment": datetime.datetime(2024, 1, 2, tzinfo=datetime.UTC),
        "null": None,
        "numbers": (1, 2.5, True),
    }

    assert encode_result(value) == (
        b'{"decimal":"1.50","moment":"2024-01-02T00:00:00Z","null":null,"numbers":[1,2.5,true]}'
    )


def test_long_messages_and_deep_stacks_are_bounded() -> None:
    def dive(depth: int) -> None:
        if depth % 2:
            dive(depth + 1)
        else:
            dive(depth + 1)

    try:
        dive(0)
    except RecursionError as error:
        _, deep = describe(error)
    _, long = describe(ValueError("x" * (1 << 20)))

    assert len(deep["stack"].encode()) <= STACK_BYTES_MAX + 100
    assert len(long["message"]) < MESSAGE_CHARS_MAX + 100
    assert len(long["stack"].encode()) <= STACK_BYTES_MAX + 100


def test_an_error_whose_text_fails_is_still_described() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    kind, error = describe(Silent())

    assert kind == "error"
    assert "cannot be made" in error["message"]


def test_head_and_tail_say_how_much_was_cut_and_a_hole_changes_neither(tmp_path: Path) -> None:
    descriptor = capture.open_capture(tmp_path)
    os.write(descriptor, b"a" * (12 << 20) + b"z")

    before = capture.head_and_tail(descriptor)
    occupied = os.fstat(descriptor).st_blocks
    punched = capture.punch(descriptor, 0)
    after = capture.head_and_tail(descriptor)

    assert before == after
    assert before[1] == (12 << 20) + 1
    assert b"[... 11,534,337 bytes cut ...]" in before[0]
    assert punched == 0 or os.fstat(descriptor).st_blocks < occupied
    capture.empty(descriptor)
    assert capture.head_and_tail(descriptor) == (b"", 0)
    os.close(descriptor)
