"""Thumbnails of pictures that are uploaded."""

import io

import pytest
from PIL import Image

from functions import thumbnails
from headrace.testing import AppUnderTest, Faults, VirtualClock

pytestmark = pytest.mark.headrace(thumbnails.app)

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


def test_a_picture_gets_three_thumbnails_beside_each_other(headrace_app: AppUnderTest) -> None:
    headrace_app.put("pictures", "summer/sea and sand.jpg", picture((2000, 1000)))
    headrace_app.run_until_idle()

    [made] = headrace_app.results("thumbnails.make")
    assert made == {
        "summer/sea and sand.jpg/large.webp": [1280, 640],
        "summer/sea and sand.jpg/medium.webp": [512, 256],
        "summer/sea and sand.jpg/small.webp": [128, 64],
    }
    for key, (width, height) in made.items():
        with Image.open(io.BytesIO(headrace_app.get("thumbnails", key))) as found:
            assert (found.format, found.size) == ("WEBP", (width, height))


def test_a_picture_whose_notification_is_lost_gets_them_too(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    headrace_faults.lose_notifications()
    headrace_app.put("pictures", "a.jpg", picture((300, 200)))
    headrace_clock.advance(600)

    assert len(headrace_app.keys("thumbnails", "a.jpg/")) == 3


def test_a_second_run_writes_the_same_objects(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, headrace_faults: Faults
) -> None:
    headrace_faults.crash_worker("thumbnails.make", after=True)
    headrace_app.put("pictures", "a.jpg", picture((300, 200)))
    headrace_app.run_until_idle()
    before = {key: headrace_app.get("thumbnails", key) for key in headrace_app.keys("thumbnails")}
    headrace_clock.advance(600)

    [ended] = headrace_app.invocations("thumbnails.make")
    assert ended.attempts == 2
    assert {key: headrace_app.get("thumbnails", key) for key in headrace_app.keys("thumbnails")} == before
    assert len(before) == 3


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
def test_what_is_no_picture_is_a_dead_letter_that_names_it(
    headrace_app: AppUnderTest, headrace_clock: VirtualClock, data: bytes, said: str
) -> None:
    headrace_app.put("pictures", "letter", data)
    headrace_clock.advance(3600)

    [failure] = headrace_app.failures("thumbnails.make")
    assert failure["message"].startswith(said)
    assert headrace_app.keys("thumbnails") == []


def test_a_picture_with_far_too_many_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(ValueError, match="x has too many pixels"):
        thumbnails.shrunk(io.BytesIO(picture((100, 100))), name="x")
