"""Frames of a video, taken at equal distances."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
#: Of animated pictures: what a frame says less of says nothing; and how long it is shown then.
_LEAST_MILLISECONDS: Final = 10
_USUAL_SECONDS: Final = 0.1
#: Frames a second of a film that says nothing.
_USUAL_RATE: Final = 24
_KINDS: Final = "MP4, WebM, AVI and animated GIF, WebP and PNG are read"


def decode_video(data: bytes, options: Mapping[str, Any]) -> dict[str, Any]:
    """{frames: [{width, height}], blobs: [RGB of each], times: [seconds of each], duration: seconds of all}, in order.
    Raises `Refused`."""
    if not data:
        raise Refused("it is empty")
    container = next((name for (at, magic), name in _CONTAINERS if data[at : at + len(magic)] == magic), None)
    film = _animated(data, options) if container is None else _film(data, container, options)
    if not film.frames:
        raise Refused("it has no frames")
    return {**_told(film.frames), "times": film.times, "duration": film.duration}


def decode_frames(parts: Sequence[bytes], options: Mapping[str, Any]) -> dict[str, Any]:
    """The same of frames that are images each, whose times nobody knows."""
    chosen = [parts[i] for i in places(len(parts), options["num_frames"])]
    return _told([to_rgb(opened(part, options["max_pixels"]), options) for part in chosen])


def _told(frames: Sequence[Image.Image]) -> dict[str, Any]:
    sizes = [{"width": frame.width, "height": frame.height} for frame in frames]
    return {"frames": sizes, "blobs": [frame.tobytes() for frame in frames]}


def places(total: int, wanted: int) -> list[int]:
    """At most `wanted` of 0..total-1, at equal distances, the first and the last among them where there are two."""
    if total <= wanted:
        return list(range(total))
    if wanted == 1:
        return [0]
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


@dataclass(frozen=True)
class _Frames:
    frames: list[Image.Image]
    times: list[float]  # in seconds
    duration: float  # of all there are


def _animated(data: bytes, options: Mapping[str, Any]) -> _Frames:
    try:
        image = opened(data, options["max_pixels"])
    except Refused as exc:
        raise Refused(
            f"it is no video, or of a kind that is not read; {_KINDS}" if "kind" in str(exc) else str(exc)
        ) from None
    total = int(getattr(image, "n_frames", 1))
    if total > _MAX_DECODED:
        raise Refused(f"it has more than {_MAX_DECODED} frames")
    wanted, chosen, times, seconds = set(places(total, options["num_frames"])), [], [], 0.0
    for i in range(total):
        try:
            image.seek(i)
            if i in wanted:
                times.append(seconds)
                chosen.append(to_rgb(image.copy(), options))
            else:
                image.load()
        except (EOFError, OSError, ValueError, SyntaxError):
            raise Refused("it is truncated or damaged") from None
        seconds += _shown(image)
    return _Frames(chosen, times, seconds)


def _shown(image: Image.Image) -> float:
    """For how many seconds. A viewer shows a frame that says nothing, or nearly nothing, for a tenth of one."""
    told = image.info.get("duration")
    return told / 1000 if isinstance(told, int | float) and told > _LEAST_MILLISECONDS else _USUAL_SECONDS


def _film(data: bytes, container: str, options: Mapping[str, Any]) -> _Frames:
    if av is None:
        raise Refused("this server reads animated GIF, WebP and PNG only; octavo[media] reads MP4, WebM and AVI")
    try:
        with av.open(
            io.BytesIO(data), format=container, options={"protocol_whitelist": "none", "enable_drefs": "0"}
        ) as file:
            return _sampled(file, options)
    except (av.FFmpegError, ValueError, IndexError, OverflowError):
        raise Refused("it is truncated or damaged") from None


def _sampled(file: Any, options: Mapping[str, Any]) -> _Frames:
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
    rate = float(stream.average_rate or stream.guessed_rate or _USUAL_RATE)
    chosen, times = [], []
    for i, frame in enumerate(file.decode(stream)):
        if i > max(wanted):
            break
        if i in wanted:
            if frame.width * frame.height > options["max_pixels"]:
                raise Refused(f"its frames have more than {options['max_pixels']} pixels (--max-image-pixels)")
            chosen.append(to_rgb(frame.to_image(), options))
            times.append(i / rate)
    return _Frames(chosen, times, total / rate)


def _estimated(file: Any, stream: Any) -> int:
    if file.duration is None or not stream.average_rate:
        return 0
    return max(1, int(file.duration / 1_000_000 * float(stream.average_rate)))
