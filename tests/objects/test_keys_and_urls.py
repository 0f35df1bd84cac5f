"""Names of keys, files, buckets and URLs."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.runtime.errors import InvalidObjectUrl, InvalidSettings
from headrace.runtime.objects.folder import FolderStore
from headrace.runtime.objects.key import file_name, file_names, is_temporary_name, key_of_path, segment_of
from headrace.runtime.objects.url import open_store, parse_object_url

_TRICKY = st.text(st.sampled_from("%250EFfa.\x00\x0a"), max_size=10)


@pytest.mark.parametrize(
    "name",
    ["report.csv", "100%.txt", "my%20file.pdf", "50%25.txt", ".DS_Store", "ünï.txt", "a b", "...", "%zz"],
)
def test_an_ordinary_key_is_its_own_file_name(name: str) -> None:
    assert file_names(f"in/{name}") == [b"in", name.encode()]
    assert segment_of(name) == name


@pytest.mark.parametrize(
    ("segment", "name"),
    [
        ("", b"%"),
        (".", b"%2E"),
        ("..", b"%2E."),
        ("a\x00b", b"a%00b"),
        ("a\nb%", b"a%0Ab%25"),
        ("%", b"%25"),
        (".headrace-tmp", b"%2Eheadrace-tmp"),
        ("a%0Ab", b"a%250Ab"),
    ],
)
def test_what_a_file_system_cannot_hold_is_percent_encoded(segment: str, name: bytes) -> None:
    assert file_name(segment) == name
    assert segment_of(name.decode()) == segment


@given(st.text(max_size=20).map(lambda text: text.replace("/", "")) | _TRICKY)
@example("%" * 400)
@example("%" + "25" * 400)
@example("%00")
def test_every_segment_comes_back_from_its_file_name(segment: str) -> None:
    name = file_name(segment).decode()
    assert segment_of(name) == segment
    assert "/" not in name
    assert name not in ("", ".", "..")
    assert not name.startswith(".headrace-")
    assert not any(ord(character) < 32 or ord(character) == 127 for character in name)


@given(st.text(min_size=1, max_size=20).map(lambda text: text.replace("/", "")) | _TRICKY)
@example("%")
@example("%2E%2E")
def test_every_file_name_that_stands_for_a_segment_is_that_segments_own(name: str) -> None:
    segment = segment_of(name)
    assert segment is None or file_name(segment).decode() == name


@pytest.mark.parametrize("name", ["", ".", "..", ".headrace-tmp", "a\x00", "a\n", "\x7f"])
def test_names_that_are_no_ones_stand_for_no_segment(name: str) -> None:
    assert segment_of(name) is None


@pytest.mark.parametrize(
    ("key", "temporary"),
    [
        ("a.csv", False),
        ("a.part", True),
        ("in/A.TMP", True),
        ("x.crdownload", True),
        ("in/.a.csv.Xa3", True),
        (".git/config", True),
        ("in/notes~", True),
        ("a.partition", False),
        ("a.tmp/b", False),
        ("a./b", False),
    ],
)
def test_names_of_unfinished_files_are_known(key: str, temporary: bool) -> None:
    assert is_temporary_name(key) is temporary


def test_a_path_below_a_bucket_leads_back_to_its_key() -> None:
    for key in ("in/report.csv", "a//b", "../x", "%25/", "ü/.DS_Store"):
        assert key_of_path(name.decode() for name in file_names(key)) == key
    assert key_of_path([".headrace-tmp", "upload-1-1"]) is None
    assert key_of_path(["%"]) is None
    assert key_of_path(["not utf-8: \udcff"]) is None
    assert key_of_path(["x" * 250] * 5) is None


def test_an_object_url_names_bucket_and_key() -> None:
    assert parse_object_url("s3://data/a/b c%20?x#y") == ("data", "a/b c%20?x#y")
    assert parse_object_url("S3://data//a/") == ("data", "/a/")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data/key", "begin with s3"),
        ("http://data/key", "begin with s3"),
        ("s3://", "bucket is missing"),
        ("s3:///key", "bucket is missing"),
        ("s3://data", "key is missing"),
        ("s3://data/", "key is missing"),
        ("s3://Data/key", "lower-case"),
        ("s3://data/" + "x" * 1025, "1025 bytes"),
    ],
)
def test_an_object_url_that_names_nothing_says_why(url: str, why: str) -> None:
    with pytest.raises(InvalidObjectUrl, match=why):
        parse_object_url(url)


def test_a_store_opens_by_path_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    assert isinstance(open_store(tmp_path / "one"), FolderStore)
    assert isinstance(open_store(str(tmp_path / "two"), fsync=False), FolderStore)
    with pytest.raises(InvalidSettings, match="ftp://") as caught:
        open_store("ftp://host")
    assert "s3://" in caught.value.hint
    with pytest.raises(InvalidSettings):
        open_store("")
