"""Frames of a video, taken at equal distances."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

from PIL import Image

from octavo.media.decoding.images import opened, to_rgb
from octavo.media.decoding.refused import Refused

try:
    import av
except (ImportError, OSError):
    av = None

#: A picture of each kind of file that is read -> FFmpeg's name of it. Never guessed: some of its readers follow what a
#: file says to other files and hosts.
_CONTAINERS: Final = (((4, b"ftyp"), "mov"), ((0, b"\x1aE\xdf\xa3"), "matroska"), ((8, b"AVI "), "avi"))
#: More frames than this are not looked through.
_MAX_DECODED: Final = 20_000
_KINDS: Final = "MP4, WebM, AVI and animated GIF, WebP and PNG are read"


def decode_video(data: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """{frames: [{width, height}], blobs: [RGB of each]}, in order. Raises `Refused`."""
    if not data:
        raise Refused("it is empty")
    container = next((name for (at, magic), name in _CONTAINERS if data[at : at + len(magic)] == magic), None)
    frames = _animated(data, options) if container is None else _film(data, container, options)
    if not frames:
        raise Refused("it has no frames")
    sizes = [{"width": frame.width, "height": frame.height} for frame in frames]
    return {"frames": sizes, "blobs": [frame.tobytes() for frame in frames]}


def decode_frames(parts: Sequence[bytes], options: Mapping[str, Any]) -> dict[str, Any]:
    """The same of frames that are images each."""
    chosen = [parts[i] for i in places(len(parts), options["num_frames"])]
    frames = [to_rgb(opened(part, options["max_pixels"]), options) for part in chosen]
    sizes = [{"width": frame.width, "height": frame.height} for frame in frames]
    return {"frames": sizes, "blobs": [frame.tobytes() for frame in frames]}


def places(total: int, wanted: int) -> list[int]:
    """At most `wanted` of 0..total-1, at equal distances, the first and the last among them where there are two."""
    if total <= wanted:
        return list(range(total))
    if wanted == 1:
        return [0]
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


def _animated(data: bytes, options: Mapping[str, Any]) -> list[Image.Image]:
    try:
        image = opened(data, options["max_pixels"])
    except Refused as exc:
        raise Refused(
            f"it is no video, or of a kind that is not read; {_KINDS}" if "kind" in str(exc) else str(exc)
        ) from None
    total = int(getattr(image, "n_frames", 1))
    if total > _MAX_DECODED:
        raise Refused(f"it has more than {_MAX_DECODED} frames")
    chosen = []
    for i in places(total, options["num_frames"]):
        try:
            image.seek(i)
        except (EOFError, OSError, ValueError, SyntaxError):
            raise Refused("it is truncated or damaged") from None
        chosen.append(to_rgb(image.copy(), options))
    return chosen


def _film(data: bytes, container: str, options: Mapping[str, Any]) -> list[Image.Image]:
    if av is None:
        raise Refused("this server reads animated GIF, WebP and PNG only; octavo[media] reads MP4, WebM and AVI")
    try:
        with av.open(
            io.BytesIO(data), format=container, options={"protocol_whitelist": "none", "enable_drefs": "0"}
        ) as file:
            return _sampled(file, options)
    except (av.FFmpegError, ValueError, IndexError, OverflowError):
        raise Refused("it is truncated or damaged") from None


def _sampled(file: Any, options: Mapping[str, Any]) -> list[Image.Image]:
    if not file.streams.video:
        raise Refused("it has no pictures")
    stream = file.streams.video[0]
    stream.codec_context.thread_count = 1
    if stream.codec_context.width * stream.codec_context.height > options["max_pixels"]:
        raise Refused(f"its frames have more than {options['max_pixels']} pixels (--max-image-pixels)")
    total = stream.frames or _estimated(file, stream)
    if not 0 < total <= _MAX_DECODED:
        raise Refused(f"it has no known length, or more than {_MAX_DECODED} frames")
    wanted = set(places(total, options["num_frames"]))
    chosen = []
    for i, frame in enumerate(file.decode(stream)):
        if i > max(wanted):
            break
        if i in wanted:
            if frame.width * frame.height > options["max_pixels"]:
                raise Refused(f"its frames have more than {options['max_pixels']} pixels (--max-image-pixels)")
            chosen.append(to_rgb(frame.to_image(), options))
    return chosen


def _estimated(file: Any, stream: Any) -> int:
    if file.duration is None or not stream.average_rate:
        return 0
    return max(1, int(file.duration / 1_000_000 * float(stream.average_rate)))
