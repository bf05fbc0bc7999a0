"""Which pictures, sounds, videos and files requests may bring, and from where."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from octavo.base.config.options import json_object, opt
from octavo.base.errors import InvalidConfig
from octavo.base.suggest import nearest

#: Kinds of media that `--limit-mm-per-prompt` counts.
MEDIA_KINDS: Final = ("image", "audio", "video", "file")
#: Kind -> what `--media-io-kwargs` can say of it.
_IO_KEYS: Final = {"image": ("rgba_background_color",), "video": ("num_frames",), "file": ("max_pages",)}


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """How many media requests may bring: the engine's process gets it with its configuration."""

    limit_mm_per_prompt: str | None = opt(
        None,
        "Most images, sounds, videos and files of a request, as image=4,audio=1; default: 1 of each. With image=0 "
        "there are no videos and files either, and the part of the model that sees is not loaded; with audio=0 what "
        "hears is not.",
        json=True,
    )


@dataclass(frozen=True, kw_only=True)
class MediaConfig(MediaLimits):
    """Which pictures, sounds, videos and files requests may bring, and from where."""

    allowed_media_domains: list[str] = opt(
        list,
        "Hosts from which media may be fetched; .example.org stands for all hosts below it. Default: all public ones.",
    )
    allowed_local_media_path: str | None = opt(
        None, "Directory whose files requests may name by file:// URLs; without it there are none."
    )
    media_fetch_timeout: float = opt(5.0, "Seconds in which a medium must be fetched.", above=0.0, high=600.0)
    media_decode_timeout: float = opt(10.0, "Seconds in which a medium must be decoded.", above=0.0, high=600.0)
    max_media_bytes: int = opt(64 << 20, "Maximum size of a fetched medium in bytes.", low=1, unit="bytes")
    max_image_pixels: int = opt(64_000_000, "Most pixels of an image.", low=1, high=178_956_970)
    max_audio_seconds: float = opt(600.0, "Longest sound in seconds.", above=0.0)
    max_video_frames: int = opt(128, "Most frames that are taken of a video.", low=1)
    max_file_pages: int = opt(32, "Most pages of a file.", low=1)
    media_io_kwargs: str | None = opt(
        None,
        "How media are read, as a JSON object: image.rgba_background_color, what shows through transparent images; "
        "video.num_frames, the frames taken of a video; file.max_pages.",
        json=True,
    )
    mm_processor_kwargs: str | None = opt(
        None, "How the model's processor prepares media, as a JSON object of its own options.", json=True
    )
    trust_request_mm_kwargs: bool = opt(
        False, "Heed mm_processor_kwargs and media_io_kwargs of requests, within the server's bounds."
    )
    mm_processor_cache_bytes: int = opt(
        256 << 20, "Bytes of prepared media that are kept for requests that send them again.", low=0, unit="bytes"
    )


def media_limits(config: MediaLimits) -> dict[str, int]:
    """Kind of media -> how many of them a request may have. Raises `InvalidConfig`."""
    limits, named = dict.fromkeys(MEDIA_KINDS, 1), set[str]()
    if config.limit_mm_per_prompt is None:
        return limits
    for kind, count in json_object(config.limit_mm_per_prompt, "--limit-mm-per-prompt").items():
        if kind not in limits:
            raise InvalidConfig(f"--limit-mm-per-prompt has no key {kind!r}{nearest(kind, MEDIA_KINDS)}")
        if isinstance(count, dict):  # with sizes that only a profile of memory would need
            count = count.get("count")
        if type(count) is not int or not 0 <= count <= 1024:
            raise InvalidConfig(f"--limit-mm-per-prompt: {kind} must be a number from 0 to 1024")
        limits[kind] = count
        named.add(kind)
    if not limits["image"]:  # as which frames and pages are shown
        limits |= dict.fromkeys({"video", "file"} - named, 0)
    return limits


def is_wanted(kind: str, config: MediaLimits) -> bool:
    """Whether requests may bring anything that a part of the model for this kind of media reads. Raises
    `InvalidConfig`."""
    limits = media_limits(config)
    return bool(limits["audio"]) if kind == "audio" else any(limits[each] for each in ("image", "video", "file"))


def media_io(text: str | None, place: str = "--media-io-kwargs") -> dict[str, dict[str, Any]]:
    """Kind of media -> how it is read. Raises `InvalidConfig` that begins with `place`."""
    found = {} if text is None else json_object(text, place)
    for kind, options in found.items():
        if kind not in _IO_KEYS:
            raise InvalidConfig(f"{place} has no key {kind!r}{nearest(kind, tuple(_IO_KEYS))}")
        if not isinstance(options, dict):
            raise InvalidConfig(f"{place}: {kind} must be a JSON object")
        for name, value in options.items():
            _check_io(kind, name, value, place)
    return found


def _check_io(kind: str, name: str, value: Any, place: str) -> None:
    if name not in _IO_KEYS[kind]:
        raise InvalidConfig(f"{place}: {kind} has no key {name!r}{nearest(name, _IO_KEYS[kind])}")
    if name == "rgba_background_color":
        if not (isinstance(value, list) and len(value) == 3 and all(type(v) is int and 0 <= v <= 255 for v in value)):
            raise InvalidConfig(f"{place}: rgba_background_color must be three numbers from 0 to 255")
    elif type(value) is not int or value < 1:
        raise InvalidConfig(f"{place}: {name} must be a number of at least 1")


def check_media(config: MediaConfig) -> None:
    """Raises `InvalidConfig`."""
    media_limits(config)
    io = media_io(config.media_io_kwargs)
    for kind, name, most in (
        ("video", "num_frames", config.max_video_frames),
        ("file", "max_pages", config.max_file_pages),
    ):
        if io.get(kind, {}).get(name, 1) > most:
            flag = "--max-video-frames" if kind == "video" else "--max-file-pages"
            raise InvalidConfig(f"--media-io-kwargs: {name} must be at most {most} ({flag})")


def io_text(value: Any) -> str:
    """The JSON text of what a request says, which is checked as the flag's is. Raises `ValueError`, `TypeError`."""
    return json.dumps(value)
