"""From items to the messages of a chat: those that a caller of the chat API would send, for the same text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.media.part import GivenMedia, MediaPart, media_part
from octavo.served.events import Call
from octavo.served.messages import Message, assistant_message, tool_message
from octavo.server.responses.protocol.items import MEDIA_PARTS, Item, not_taken, text_of


def messages_of(instructions: str | None, items: Sequence[Item], num_before: int) -> list[Message]:
    """`num_before`: how many of the items are not of the request itself. Raises `InvalidRequest`."""
    messages: list[Message] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})

    def place(i: int) -> str:
        return f"input.{i - num_before}" if i >= num_before else "input"

    said = _Said()
    names: dict[str, str] = {}  # of the calls so far, by their ids
    for i, item in enumerate(items):
        kind = item["type"]
        is_own = kind in ("reasoning", "function_call") or item.get("role") == "assistant"
        if not is_own or said.is_over(item):
            messages += said.messages()
            said = _Said()
        if is_own:
            said.add(item)
            if kind == "function_call":
                names[item["call_id"]] = item["name"]
        elif kind == "message":
            messages.append({"role": item["role"], "content": _content(item["content"], place(i), "content")})
        else:
            call_id = item["call_id"]
            if call_id not in names:
                raise InvalidRequest(
                    f"There is no function call with the `call_id` {call_id[:64]!r} before its output.",
                    f"{place(i)}.call_id" if i >= num_before else place(i),
                )
            messages.append(tool_message(call_id, _content(item["output"], place(i), "output"), names[call_id]))
    return messages + said.messages()


def _content(content: str | list[dict[str, Any]], place: str, field: str) -> str | list[Any]:
    """One text; parts where some are media. Those of items that were kept have no place in the request."""
    if isinstance(content, str) or not any(part["type"] in MEDIA_PARTS for part in content):
        return text_of(content)
    parts: list[Any] = []
    for j, part in enumerate(content):
        if part["type"] in MEDIA_PARTS:
            path = place if place == "input" else f"{place}.{field}.{j}"
            parts.append(GivenMedia(path, not_taken(part["type"]), partial(_read, part, path)))
        else:
            parts.append({"type": "text", "text": text_of([part])})
    return parts


def _read(part: dict[str, Any], path: str) -> MediaPart:
    medium = media_part(part, path)
    assert medium is not None  # it is one of `MEDIA_PARTS`
    return medium


class _Said:
    """What a model said in one turn: its items become one message."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[Call] = []

    def is_over(self, item: Item) -> bool:
        """The item begins another turn: thoughts come before what is said, and a message stands for itself."""
        if item["type"] == "reasoning":
            return bool(self._content or self._calls)
        return item["type"] == "message" and bool(self._content) and not self._calls

    def add(self, item: Item) -> None:
        if item["type"] == "reasoning":
            # The summary is another's, of a text that was not given.
            self._reasoning.append(text_of(item["content"]) or "\n".join(text_of([part]) for part in item["summary"]))
        elif item["type"] == "function_call":
            self._calls.append(Call(item["call_id"], item["name"], item["arguments"]))
        else:
            self._content.append(text_of(item["content"]))

    def messages(self) -> list[Message]:
        """One, or none where nothing was said."""
        content, calls = self._content, self._calls
        if not (content or self._reasoning or calls):
            return []
        text = "".join(content) if content or not calls else None
        return [assistant_message(text, "".join(self._reasoning), calls)]
