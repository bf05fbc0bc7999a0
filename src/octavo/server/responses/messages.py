"""From items to the messages of a chat: those that a caller of the chat API would send, for the same text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.media.part import GivenMedia, MediaPart, media_part
from octavo.served.events import Call
from octavo.served.messages import Message, assistant_message, tool_message
from octavo.server.responses.protocol.items import MEDIA_PARTS, Item, not_taken, text_of


def messages_of(
    instructions: str | None,
    items: Sequence[Item],
    num_before: int,
    function_names: Mapping[tuple[str, str], str] | None = None,
) -> list[Message]:
    """`num_before`: how many of the items are not of the request itself. `function_names`: of tools of MCP servers, by
    label and name, how the model knows them. Raises `InvalidRequest`."""
    messages: list[Message] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})

    def place(i: int) -> str:
        return f"input.{i - num_before}" if i >= num_before else "input"

    said = _Said()
    names: dict[str, str] = {}  # of the calls so far, by their ids
    for i, item in enumerate(items):
        kind = item["type"]
        if kind == "mcp_list_tools":  # what the model is told of it are the functions
            continue
        call = _call_of(item, function_names or {}, names)
        is_own = call is not None or kind == "reasoning" or item.get("role") == "assistant"
        if not is_own or said.is_over(item):
            messages += said.messages()
            said = _Said()
        if call is not None:
            said.add_call(call)
            names[call.call_id] = call.name
        elif is_own:
            said.add(item)
        elif kind == "message":
            messages.append({"role": item["role"], "content": _content(item["content"], place(i), "content")})
        elif kind == "function_call_output":
            call_id = item["call_id"]
            if call_id not in names:
                raise InvalidRequest(
                    f"There is no function call with the `call_id` {call_id[:64]!r} before its output.",
                    f"{place(i)}.call_id" if i >= num_before else place(i),
                )
            messages.append(tool_message(call_id, _content(item["output"], place(i), "output"), names[call_id]))
        elif kind == "mcp_approval_response":
            messages += _refusal(item, names, f"{place(i)}.approval_request_id" if i >= num_before else place(i))
        if kind == "mcp_call":
            # Each call is followed by what it gave: which of them the model wrote together, the items do not say.
            messages += said.messages()
            said = _Said()
            messages.append(tool_message(_call_id(item), _given(item), names[_call_id(item)]))
    messages += said.messages()
    if not messages:
        raise InvalidRequest("There is nothing to respond to: `input` is missing or empty.", "input")
    return messages


def _refusal(item: Item, names: Mapping[str, str], param: str) -> list[Message]:
    """What a model is told of the answer to an approval request: nothing where the call is made."""
    request_id = item["approval_request_id"]
    if request_id not in names:
        raise InvalidRequest(f"There is no approval request with the id {request_id[:64]!r} before its answer.", param)
    if item["approve"]:
        return []
    reason = item.get("reason")
    return [tool_message(request_id, f"The call was not approved{f': {reason}' if reason else '.'}", names[request_id])]


def _call_of(item: Item, function_names: Mapping[tuple[str, str], str], known: Mapping[str, str]) -> Call | None:
    """The call that an item is, unless it is among the `known` ones: one that was approved is that of the request."""
    kind = item["type"]
    if kind == "function_call":
        return Call(item["call_id"], item["name"], item["arguments"])
    if kind not in ("mcp_approval_request", "mcp_call") or _call_id(item) in known:
        return None
    name = function_names.get((item["server_label"], item["name"]), item["name"])
    return Call(_call_id(item), name, item["arguments"])


def _call_id(item: Item) -> str:
    """Of a call of an MCP server's tool, or of the request to approve it."""
    call_id: str = item.get("approval_request_id") or item["id"]
    return call_id


def _given(item: Item) -> str:
    """What a model is told of a call of an MCP server's tool."""
    error = item.get("error")
    if error is None:
        return "The call was not made." if item.get("output") is None else str(item["output"])
    parts = error.get("content")
    texts = (
        [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
        if isinstance(parts, list)
        else []
    )
    return f"Error: {error.get('message') or ' '.join(texts) or 'the call failed'}"


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
        else:
            self._content.append(text_of(item["content"]))

    def add_call(self, call: Call) -> None:
        self._calls.append(call)

    def messages(self) -> list[Message]:
        """One, or none where nothing was said."""
        content, calls = self._content, self._calls
        if not (content or self._reasoning or calls):
            return []
        text = "".join(content) if content or not calls else None
        return [assistant_message(text, "".join(self._reasoning), calls)]
