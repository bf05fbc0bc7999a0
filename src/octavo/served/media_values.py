"""Media that a program gives as what they are: pixels, samples, rows. Imported where there are some."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from octavo.base.errors import InvalidRequest
from octavo.base.media import MediaTensor, PreparedMedia, media_digest
from octavo.media.part import MediaPart
from octavo.text.media.processor import MediaProcessor, RowsProcessor

_DTYPES = ("float32", "float16")


def blobs(part: MediaPart) -> list[bytes]:
    """What `part.values` are, as JSON of their shape and their bytes. Raises `InvalidRequest`."""
    if part.kind == "audio":
        samples, rate = _samples(part.values, part.param)
        return [json.dumps({"rate": rate}).encode(), samples.tobytes()]
    if part.kind == "image":
        pixels = _pixels(part.values, part.param)
        return [json.dumps(_size(pixels)).encode(), pixels.tobytes()]
    if part.kind == "video":
        frames = [_pixels(frame, part.param) for frame in part.values]
        if not frames:
            raise InvalidRequest("A video needs at least one frame.", part.param)
        return [json.dumps({"frames": list(map(_size, frames))}).encode(), *(frame.tobytes() for frame in frames)]
    raise InvalidRequest("Files are given as URLs or bytes.", part.param)


def decoded(parts: list[bytes]) -> dict[str, Any]:
    """As a helper would have decoded them."""
    head: dict[str, Any] = json.loads(parts[0])
    return {**head, "blobs": parts[1:]}


def _size(pixels: np.ndarray) -> dict[str, int]:
    return {"width": pixels.shape[1], "height": pixels.shape[0]}


def _pixels(value: Any, param: str) -> np.ndarray:
    """uint8 [height, width, 3] of a PIL image or an array."""
    from PIL import Image

    from octavo.media.decoding.images import to_rgb
    from octavo.media.decoding.refused import Refused

    if isinstance(value, Image.Image):
        try:
            return np.asarray(to_rgb(value, {}))
        except Refused as exc:
            raise InvalidRequest(f"The image cannot be read: {exc}.", param) from None
    array = np.asarray(value)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InvalidRequest("An image is a PIL image, or an array of uint8 [height, width, 3].", param)
    return np.ascontiguousarray(array)


def _samples(value: Any, param: str) -> tuple[np.ndarray, int]:
    """float32 [samples] in -1..1 and their rate, of a pair of both."""
    from octavo.media.decoding.sounds import RATES, are_samples

    if not isinstance(value, tuple | list) or len(value) != 2 or type(value[1]) not in (int, float):
        raise InvalidRequest("A sound is a pair: an array of samples, and how many make a second.", param)
    given = np.asarray(value[0])
    is_whole = given.dtype.name in ("int16", "int32")
    is_sound = given.ndim == 1 and given.size and (is_whole or given.dtype.kind == "f")
    if not is_sound or not are_samples(samples := np.ascontiguousarray(given, np.float32)):
        raise InvalidRequest("A sound's samples are of one channel: floats in -1..1, int16 or int32.", param)
    if not RATES.start <= value[1] < RATES.stop:
        raise InvalidRequest(f"A sound has {RATES.start} to {RATES.stop - 1} samples a second.", param)
    loudest = -float(np.iinfo(given.dtype).min) if is_whole else 1.0
    return samples / np.float32(loudest), int(value[1])


def embeds(data: bytes, processor: MediaProcessor, width: int, param: str) -> PreparedMedia:
    """Rows that are ready for the model: a NumPy file of [rows, width]. Raises `InvalidRequest`."""
    if not width or not isinstance(processor, RowsProcessor):
        raise InvalidRequest("This model takes no embeddings of images; send the images.", param)
    try:
        rows = _array(data)
    except (ValueError, EOFError, OSError, SyntaxError):
        raise InvalidRequest("Embeddings are a NumPy file (.npy) in base64.", param) from None
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != width:
        raise InvalidRequest(f"Embeddings are float32 or float16 of [rows, {width}].", param)
    rows = np.ascontiguousarray(rows, np.float32)
    if not np.isfinite(rows).all():
        raise InvalidRequest("Embeddings are finite numbers.", param)
    tensors: Mapping[str, MediaTensor] = {"rows": MediaTensor("float32", rows.shape, rows.tobytes())}
    text = processor.rows_text(len(rows))
    return PreparedMedia("embeds", media_digest("embeds", tensors, None), dict(tensors), len(rows), text)


def _array(data: bytes) -> np.ndarray:
    """What a file of NumPy's holds, if it is as large as its head says. Never an object: those are code."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.name not in _DTYPES or len(shape) != 2 or shape[0] * shape[1] * dtype.itemsize != len(data) - file.tell():
        raise ValueError
    array = np.frombuffer(data, dtype, offset=file.tell())
    return array.reshape(shape[::-1]).T if is_fortran else array.reshape(shape)
