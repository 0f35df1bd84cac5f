"""A node's objects through its API: reads are the node's, writes stay in a folder unless they go through."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_node import RunningNode

from headrace import Client
from headrace.runtime.client.objects import NodeObjects
from headrace.runtime.errors import Forbidden, NoSuchBucket, NoSuchObject, PreconditionFailed, Unknown


@pytest.fixture
def client(running_node: RunningNode) -> Iterator[Client]:
    with Client(running_node.url, running_node.token) as found:
        for key in ("a", "b/ü x", "c"):
            found.make_bucket("node-objects")
            found.put_object(f"s3://node-objects/{key}", f"<{key}>".encode())
        yield found


@pytest.fixture
def objects(client: Client, tmp_path: Path) -> NodeObjects:
    return NodeObjects(client, tmp_path / "here")


def test_an_object_is_described_as_the_node_has_it(objects: NodeObjects) -> None:
    info = objects.head("node-objects", "b/ü x")
    [listed] = objects.list("node-objects", prefix="b/")

    assert (info.size, info.key, bool(info.etag)) == (8, "b/ü x", True)
    assert (listed.etag, listed.sequencer, listed.modified_at) == (
        info.etag,
        info.sequencer,
        info.modified_at,
    )


@pytest.mark.parametrize(
    ("start", "end", "data"),
    [
        (0, None, b"<a>"),
        (1, 2, b"a"),
        (1, None, b"a>"),
        (0, 99, b"<a>"),
        (3, None, b""),
        (9, 10, b""),
        (1, 1, b""),
    ],
)
def test_a_range_is_as_a_slice(objects: NodeObjects, start: int, end: int | None, data: bytes) -> None:
    with objects.open("node-objects", "a", start=start, end=end) as stream:
        assert stream.read() == data


def test_a_wrong_range_is_refused(objects: NodeObjects) -> None:
    with pytest.raises(ValueError, match="range"):
        objects.open("node-objects", "a", start=2, end=1)


def test_another_state_than_the_expected_is_refused(objects: NodeObjects) -> None:
    with pytest.raises(PreconditionFailed):
        objects.open("node-objects", "a", if_match="other")


def test_what_is_absent_is_said(objects: NodeObjects) -> None:
    with pytest.raises(NoSuchObject):
        objects.get("node-objects", "none")
    with pytest.raises(Unknown):
        objects.list("no-such-bucket")


def test_what_is_written_is_read_back_here_and_not_there(client: Client, objects: NodeObjects) -> None:
    objects.put("node-objects", "a", [b"ne", b"w"])
    objects.put("node-objects", "bb", io.BytesIO(b"file"))
    with objects.writer("made-here", "x") as writer:
        writer.write(b"stream")

    assert writer.info.size == 6
    assert (objects.get("node-objects", "a"), objects.get("made-here", "x")) == (b"new", b"stream")
    assert [info.key for info in objects.list("node-objects")] == ["a", "b/ü x", "bb", "c"]
    assert [info.key for info in objects.list("node-objects", after="a", limit=2)] == ["b/ü x", "bb"]
    assert [info.key for info in objects.list("made-here")] == ["x"]
    assert client.get_object("s3://node-objects/a") == b"<a>"
    assert "made-here" not in client.buckets()
    assert {"made-here", "node-objects"} <= {*objects.buckets()}
    assert [info.key for info in objects.written] == ["a", "bb", "x"]


def test_an_aborted_stream_leaves_nothing(objects: NodeObjects) -> None:
    writer = objects.writer("node-objects", "half")
    with contextlib.suppress(ZeroDivisionError), writer:
        writer.write(b"half")
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="committed"):
        _ = writer.info
    with pytest.raises(NoSuchObject):
        objects.head("node-objects", "half")


def test_what_is_deleted_is_gone_here_only_and_may_come_back(client: Client, objects: NodeObjects) -> None:
    objects.delete("node-objects", "a")
    objects.delete("node-objects", "never-was")

    with pytest.raises(NoSuchObject):
        objects.head("node-objects", "a")
    assert [info.key for info in objects.list("node-objects")] == ["b/ü x", "c"]
    assert client.get_object("s3://node-objects/a") == b"<a>"
    objects.put("node-objects", "a", b"again")
    assert objects.get("node-objects", "a") == b"again"


def test_conditions_hold_against_both(objects: NodeObjects) -> None:
    etag = objects.head("node-objects", "a").etag
    with pytest.raises(PreconditionFailed):
        objects.put("node-objects", "a", b"x", if_none_match=True)
    second = objects.put("node-objects", "a", b"x", if_match=etag)
    with pytest.raises(PreconditionFailed):
        objects.put("node-objects", "a", b"y", if_match=etag)
    objects.put("node-objects", "a", b"y", if_match=second.etag)
    objects.put("node-objects", "new", b"z", if_none_match=True)
    with pytest.raises(ValueError, match="exclude"):
        objects.put("node-objects", "a", b"", if_match="x", if_none_match=True)


def test_writes_go_through_when_they_are_meant_to(client: Client, tmp_path: Path) -> None:
    objects = NodeObjects(client, tmp_path / "here", through=True)
    client.make_bucket("through")

    assert objects.put("through", "k", b"1", if_none_match=True).size == 1
    with pytest.raises(PreconditionFailed):
        objects.put("through", "k", b"2", if_none_match=True)
    assert client.get_object("s3://through/k") == b"1"
    objects.delete("through", "k")
    assert [*client.list_objects("s3://through/")] == []
    assert objects.written == []


def test_what_an_engines_step_leaves_stays_here_in_any_case(client: Client, tmp_path: Path) -> None:
    objects = NodeObjects(client, tmp_path / "here", through=True)
    objects.put("headrace-system", "jobs/x.json", b"1")

    assert objects.get("headrace-system", "jobs/x.json") == b"1"
    with pytest.raises((Forbidden, NoSuchObject, NoSuchBucket)):
        objects.get("headrace-system", "jobs/other.json")
