"""Thumbnails: every picture put into the bucket `pictures` appears in three sizes in the bucket `thumbnails`.

Try it:   headrace serve functions/ --data ./data
          cp holiday.jpg ./data/buckets/pictures/
          ls ./data/buckets/thumbnails/holiday.jpg/
"""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from headrace import App, Context, Upload, UploadEvent

app = App("thumbnails")

# The longest side of each size, in pixels, from large to small.
SIZES = {"large": 1280, "medium": 512, "small": 128}


# The thumbnails go to another bucket. Were they written to `pictures`, each would start this function again.
@app.on(Upload("pictures"))
@app.function(timeout=60, memory="768 MiB", retries=1)
def make(event: UploadEvent, context: Context) -> dict[str, list[int]]:
    """Make the thumbnails of one picture; returns the width and height of each by its key."""
    with context.objects.open(event.bucket, event.key) as picture:
        thumbnails = shrunk(io.BytesIO(picture.read()), name=event.url)

    context.objects.make_bucket("thumbnails")  # one that exists is left as it is
    made = {}
    for size, (data, width, height) in thumbnails.items():
        # The same picture always has the same keys, so a second run overwrites and harms nothing.
        key = f"{event.key}/{size}.webp"
        context.objects.put("thumbnails", key, data, content_type="image/webp")
        made[key] = [width, height]
    return made


def shrunk(picture: io.BytesIO, *, name: str) -> dict[str, tuple[bytes, int, int]]:
    """The picture in each size: WebP data, width and height. A picture is never enlarged.

    Raises: ValueError if this is no picture; the upload then rests among the dead letters with this message.
    """
    try:
        with Image.open(picture) as opened:
            opened.draft("RGB", (SIZES["large"], SIZES["large"]))  # JPEG: decode no more pixels than we need
            upright = ImageOps.exif_transpose(opened)  # cameras note which way is up instead of turning
            upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture in a format that Pillow knows") from None
    except (OSError, SyntaxError) as e:
        raise ValueError(f"{name} is a damaged picture: {e}") from e
    except Image.DecompressionBombError as e:
        raise ValueError(f"{name} has too many pixels: {e}") from e

    thumbnails = {}
    for size, longest in SIZES.items():  # from large to small, each made from the one before
        upright.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        upright.save(out, "WEBP", quality=82)
        thumbnails[size] = (out.getvalue(), *upright.size)
    return thumbnails
