"""Pictures and documents of Anthropic's API as media of a message."""

from __future__ import annotations

from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.media.part import GivenMedia, MediaPart, PartKind, checked_url
from octavo.server.anthropic.protocol import MediaBlock


def given_media(block: MediaBlock, place: str) -> list[Any]:
    """The parts of a message that a block is: what is said of a document comes before it."""
    refusal = f"This model takes text only; blocks of type '{block.type}' cannot be read."
    said = f"{block.context}\n" if block.context else ""
    parts: list[Any] = [{"type": "text", "text": said}] if said else []
    if block.type == "document" and isinstance(block.source, dict) and block.source.get("type") == "text":
        text = block.source.get("data")
        if not isinstance(text, str):
            raise InvalidRequest("A source of the type 'text' needs a string `data`.", f"{place}.source.data")
        title = f"{block.title}\n" if block.title else ""
        return [*parts, {"type": "text", "text": title + text}]
    return [*parts, GivenMedia(place, refusal, lambda: _read(block, place))]


def _read(block: MediaBlock, place: str) -> MediaPart:
    """Raises `InvalidRequest`."""
    kind: PartKind = "image" if block.type == "image" else "file"
    source, path = block.source, f"{place}.source"
    if not isinstance(source, dict):
        raise InvalidRequest("`source` should be an object with a `type`.", path)
    common: dict[str, Any] = {"kind": kind, "place": place, "title": block.title}
    if source.get("type") == "base64":
        data = source.get("data")
        if not isinstance(data, str) or not data:
            raise InvalidRequest("`data` should be base64.", f"{path}.data")
        return MediaPart(param=f"{path}.data", data=data, **common)
    if source.get("type") == "url":
        url = source.get("url")
        if not isinstance(url, str) or not url:
            raise InvalidRequest("`url` should be a URL.", f"{path}.url")
        return MediaPart(param=f"{path}.url", url=checked_url(url, kind, f"{path}.url"), **common)
    wanted = "'base64' or 'url'" if kind == "image" else "'base64', 'url' or 'text'"
    raise InvalidRequest(f"The type of a source should be {wanted}.", f"{path}.type")
