"""The media that a program gives with a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from octavo.base.errors import InvalidRequest
from octavo.media.part import MediaPart, PartKind, checked_url
from octavo.served.turn import MediaOptions

_KINDS: Final[tuple[PartKind, ...]] = ("image", "audio", "video")


def given_media(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The fields of a `Continuation` for `multi_modal_data` and `mm_processor_kwargs`. Raises `InvalidRequest`."""
    data = item.get("multi_modal_data")
    if not data:
        return {}
    if not isinstance(data, Mapping):
        raise InvalidRequest("`multi_modal_data` is a dictionary.", f"{place}.multi_modal_data")
    uuids = item.get("multi_modal_uuids") or {}
    media = []
    for kind, given in data.items():
        path = f"{place}.multi_modal_data.{kind}"
        if kind not in _KINDS:
            raise InvalidRequest(f"Media are of the kinds {', '.join(_KINDS)}.", path)
        names = _as_list(kind, uuids.get(kind))
        for i, value in enumerate(_as_list(kind, given)):
            media.append(_part(kind, value, names[i] if i < len(names) else None, f"{path}.{i}"))
    return {"media": media, "media_options": MediaOptions(item.get("mm_processor_kwargs"))}


def _as_list(kind: str, given: Any) -> Sequence[Any]:
    """Several, or one: a sound is a pair, and a video a list of frames."""
    if given is None:
        return ()
    if kind == "video" and isinstance(given, Sequence) and not isinstance(given, str):
        is_one = not (len(given) and isinstance(given[0], list | tuple | str))
        return [given] if is_one else given
    return given if isinstance(given, list) else [given]


def _part(kind: PartKind, value: Any, uuid: str | None, path: str) -> MediaPart:
    common: dict[str, Any] = {"kind": kind, "param": path, "place": path, "uuid": uuid}
    if isinstance(value, str):
        return MediaPart(url=checked_url(value, kind, path), **common)
    return MediaPart(values=value, **common)
