"""Thumbnails of pictures that a store really holds."""

import io
from pathlib import Path

import pytest
from example_context import context_over
from PIL import Image

from functions import thumbnails
from headrace import UploadEvent

ORIENTATION = 0x0112  # the EXIF tag
TURN_RIGHT = 6  # shown rightly after a quarter turn to the right


def picture(
    size: tuple[int, int], *, form: str = "JPEG", mode: str = "RGB", orientation: int | None = None
) -> bytes:
    image = Image.new(mode, size, (200, 30, 30) if mode == "RGB" else (200, 30, 30, 0))
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    out = io.BytesIO()
    image.save(out, form, exif=exif)
    return out.getvalue()


def upload(key: str, data: bytes) -> UploadEvent:
    return UploadEvent.of(
        "pictures", key, size=len(data), etag="1", sequencer="01", time="2026-03-01T00:00:00.000Z"
    )


def test_a_picture_gets_three_thumbnails_beside_each_other(tmp_path: Path) -> None:
    context, data = context_over(tmp_path), picture((2000, 1000))
    context.objects.make_bucket("pictures")
    context.objects.put("pictures", "summer/sea and sand.jpg", data)

    made = thumbnails.make(upload("summer/sea and sand.jpg", data), context)

    assert made == {
        "summer/sea and sand.jpg/large.webp": [1280, 640],
        "summer/sea and sand.jpg/medium.webp": [512, 256],
        "summer/sea and sand.jpg/small.webp": [128, 64],
    }
    for key, (width, height) in made.items():
        with Image.open(io.BytesIO(context.objects.get("thumbnails", key))) as found:
            assert (found.format, found.size) == ("WEBP", (width, height))


def test_a_second_run_writes_the_same_objects(tmp_path: Path) -> None:
    context, data = context_over(tmp_path), picture((300, 200))
    context.objects.make_bucket("pictures")
    context.objects.put("pictures", "a.jpg", data)

    assert thumbnails.make(upload("a.jpg", data), context) == thumbnails.make(upload("a.jpg", data), context)
    assert len(context.objects.list("thumbnails")) == 3


def test_a_turned_picture_is_set_upright() -> None:
    made = thumbnails.shrunk(io.BytesIO(picture((400, 200), orientation=TURN_RIGHT)), name="x")

    assert made["small"][1:] == (64, 128)


def test_a_small_picture_is_never_enlarged() -> None:
    made = thumbnails.shrunk(io.BytesIO(picture((100, 50))), name="x")

    assert {(width, height) for _, width, height in made.values()} == {(100, 50)}


def test_transparency_is_kept() -> None:
    data, *_ = thumbnails.shrunk(io.BytesIO(picture((100, 50), form="PNG", mode="RGBA")), name="x")["small"]

    with Image.open(io.BytesIO(data)) as found:
        assert found.mode == "RGBA"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"Dear Sir or Madam", "s3://pictures/letter is not a picture"),
        (b"", "s3://pictures/letter is not a picture"),
        (picture((400, 400))[:500], "s3://pictures/letter is a damaged picture"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, data: bytes, said: str) -> None:
    context = context_over(tmp_path)
    context.objects.make_bucket("pictures")
    context.objects.put("pictures", "letter", data)

    with pytest.raises(ValueError, match=said):
        thumbnails.make(upload("letter", data), context)

    assert "thumbnails" not in context.objects.buckets()


def test_a_picture_with_far_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(ValueError, match="x has too many pixels"):
        thumbnails.shrunk(io.BytesIO(picture((100, 100))), name="x")
