"""One form for a picture, sound, video or file of a request, whichever API it came by and however it was spelled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from octavo.base.errors import InvalidRequest

PartKind = Literal["image", "audio", "video", "file", "embeds"]

#: `detail` of an image -> the longest side in pixels that the model is shown of it; None: all that it takes.
DETAILS: Final[dict[str, int | None]] = {"auto": None, "high": None, "original": None, "low": 512}
MAX_UUID_CHARS: Final = 256

#: Type of a part -> (kind, field of its source). `input_image` and the like are the newer API's names.
_TYPES: Final[dict[str, tuple[PartKind, str]]] = {
    "image_url": ("image", "image_url"),
    "input_image": ("image", "image_url"),
    "image": ("image", "image"),
    "image_pil": ("image", "image_pil"),  # of programs
    "image_embeds": ("embeds", "image_embeds"),
    "input_audio": ("audio", "input_audio"),
    "audio_url": ("audio", "audio_url"),
    "video_url": ("video", "video_url"),
    "input_video": ("video", "input_video"),
    "file": ("file", "file"),
    "input_file": ("file", "input_file"),
}
#: Parts without a type are told by these keys.
_BARE: Final = ("image_url", "image_embeds", "input_audio", "audio_url", "video_url", "input_video")
#: Kind -> with what a URL of it begins, where it is no address of a file.
_DATA: Final = {"image": "data:image", "audio": "data:audio", "video": "data:video", "file": "data:application/pdf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPart:
    """A medium that stands in the content of a message; nothing of it has been fetched or decoded.

    `url` (http, https, data or file) or `data` (base64) say what it is; neither, with a `uuid`, means one that was
    sent before. `param` is the path of the field, `place` that of the part.
    """

    kind: PartKind
    param: str
    place: str
    url: str | None = None
    data: str | None = None
    values: Any = None  # what a program gives in place of both: pixels, samples
    detail: str = "auto"
    uuid: str | None = None
    title: str | None = None  # the name of a file


@dataclass(frozen=True, slots=True)
class GivenMedia:
    """A part of a message as an API other than the chat's spells it, not looked at yet: a model that takes text only
    refuses it in the words of `refusal`, whatever it holds. `read` raises `InvalidRequest`."""

    place: str
    refusal: str
    read: Callable[[], MediaPart]


def text_only(kind: object) -> str:
    return f"This model takes text only; a part of type {str(kind)[:40]!r} cannot be read."


def part_type(part: Mapping[str, Any], default: object = "text") -> object:
    """The type of a content part, or what it looks like where it says none."""
    if "type" in part:
        return part["type"]
    return next((name for name in _BARE if name in part), default)


def media_part(part: Mapping[str, Any], param: str) -> MediaPart | None:
    """The medium that a part of a chat request is; None: it is none. Raises `InvalidRequest` naming the field."""
    kind_name = part_type(part)
    if not isinstance(kind_name, str) or kind_name not in _TYPES:
        return None
    kind, name = _TYPES[kind_name]
    if kind_name == "input_file" or (kind_name == "file" and "file" not in part):
        source: Any = {key: part[key] for key in ("file_data", "file_url", "filename", "file_id") if key in part}
        place = param
    else:
        source, place = part.get(name), f"{param}.{name}"
        if source is None and kind_name == "input_image" and part.get("file_id") is not None:
            raise InvalidRequest("There are no kept files here; send the image itself in `image_url`.", param)
    common: dict[str, Any] = {
        "kind": kind,
        "place": param,
        "uuid": _uuid(part, source, param),
    }
    if kind == "embeds":
        return MediaPart(param=place, data=_string(source, place), **common)
    if kind == "file":
        return _file(source, place, common)
    if kind_name == "input_audio":
        return _input_audio(source, place, common)
    if isinstance(source, Mapping):
        detail = source.get("detail", part.get("detail"))
        source, place = source.get("url"), f"{place}.url"
    else:
        detail = part.get("detail")
    if source is None and common["uuid"] is not None:
        return MediaPart(param=place, **common)
    if kind_name in ("image", "image_pil") and source is not None and not isinstance(source, str | Mapping | list):
        return MediaPart(param=place, values=source, detail=_detail(detail, param), **common)
    url = checked_url(_string(source, place), kind, place)
    return MediaPart(param=place, url=url, detail=_detail(detail, param), **common)


def checked_url(url: str, kind: PartKind, param: str) -> str:
    """A URL whose scheme fits the kind. Raises `InvalidRequest`."""
    head = url[:32].lower()
    if not head.startswith((_DATA[kind], "http://", "https://", "file:")):
        raise InvalidRequest(
            f"The URL of a part of this kind must start with either '{_DATA[kind]}' or 'http'.",
            param,
        )
    return url


def _file(source: Any, param: str, common: dict[str, Any]) -> MediaPart:
    if not isinstance(source, Mapping):
        raise InvalidRequest("A file should be an object with `file_data` or `file_url`.", param)
    title = source.get("filename")
    if title is not None and (not isinstance(title, str) or len(title) > 512):
        raise InvalidRequest("`filename` should be a short string.", f"{param}.filename")
    if source.get("file_id") is not None:
        raise InvalidRequest("There are no kept files here; send the file itself in `file_data`.", f"{param}.file_id")
    if (url := source.get("file_url")) is not None:
        place = f"{param}.file_url"
        return MediaPart(param=place, url=checked_url(_string(url, place), "file", place), title=title, **common)
    place = f"{param}.file_data"
    data = source.get("file_data")
    if data is None and common["uuid"] is not None:
        return MediaPart(param=place, title=title, **common)
    text = _string(data, place)
    if text[:5].lower() == "data:":
        return MediaPart(param=place, url=checked_url(text, "file", place), title=title, **common)
    return MediaPart(param=place, data=text, title=title, **common)


def _input_audio(source: Any, param: str, common: dict[str, Any]) -> MediaPart:
    if isinstance(source, Mapping):
        data, place = source.get("data"), f"{param}.data"
    else:
        data, place = source, param
    if data is None and common["uuid"] is not None:
        return MediaPart(param=place, **common)
    text = _string(data, place)
    if text[:5].lower() in ("data:", "http:", "https"):
        return MediaPart(param=place, url=checked_url(text, "audio", place), **common)
    return MediaPart(param=place, data=text, **common)


def _string(value: Any, param: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidRequest("This should be a string that is not empty.", param)
    return value


def _detail(value: Any, param: str) -> str:
    if value is None:
        return "auto"
    if not isinstance(value, str) or value not in DETAILS:
        raise InvalidRequest(f"`detail` should be one of {', '.join(DETAILS)}.", f"{param}.detail")
    return value


def _uuid(part: Mapping[str, Any], source: Any, param: str) -> str | None:
    value = part.get("uuid")
    if value is None and isinstance(source, Mapping):
        value = source.get("uuid")
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_UUID_CHARS or not value.isprintable():
        raise InvalidRequest(
            f"`uuid` should be a string of 1 to {MAX_UUID_CHARS} printable characters.", f"{param}.uuid"
        )
    return value
