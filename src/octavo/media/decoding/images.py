"""Images to RGB of 8 bits, as a viewer would show them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from PIL import Image, ImageOps, UnidentifiedImageError

from octavo.media.decoding.refused import Refused

#: Decoders that strangers may reach.
FORMATS: Final = ("PNG", "JPEG", "WEBP", "GIF")
_WHITE: Final = (255, 255, 255)
_KINDS: Final = "PNG, JPEG, WebP and GIF are read"

Image.MAX_IMAGE_PIXELS = None  # counted here, before anything is decoded


def decode_image(data: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """{width, height, blobs: [RGB]}. Raises `Refused`."""
    image = opened(data, options["max_pixels"])
    rgb = to_rgb(image, options)
    return {"width": rgb.width, "height": rgb.height, "blobs": [rgb.tobytes()]}


def opened(data: bytes, max_pixels: int) -> Image.Image:
    """The image, of which only the header has been read."""
    if not data:
        raise Refused("it is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise Refused(f"it is no image, or of a kind that is not read; {_KINDS}") from None
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError, TypeError, KeyError):
        raise Refused("its header is damaged") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise Refused("it has no pixels")
    if width * height > max_pixels:
        raise Refused(f"it has {width} x {height} pixels; at most {max_pixels} are read (--max-image-pixels)")
    return image


def to_rgb(image: Image.Image, options: Mapping[str, Any]) -> Image.Image:
    """The first frame, the right way up, over the background, no side longer than `max_side` if that is given."""
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  (a damaged file makes errors of any kind)
        raise Refused("it is truncated or damaged") from None
    image = _upright(image)
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, tuple(options.get("background") or _WHITE))
        image.paste(rgba, mask=rgba.getchannel("A"))
    elif image.mode != "RGB":
        image = image.convert("RGB")
    side = options.get("max_side")
    if side is not None and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.BICUBIC)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """As the camera was held. What is damaged about that says nothing of the pixels."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001
        return image


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Greys of 16 bits: plainly converted, all but the darkest would be white."""
    return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
