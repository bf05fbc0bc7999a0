"""The same conversation in fewer kinds of messages, for templates that refuse it.

Some templates want users and assistants to take turns, some know no results of tools, some no system message. Each of
`steps` takes away one thing that such templates stumble over, and what was said stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from octavo.text.templates.chat_template import Message

_BETWEEN: Final = "\n\n"
Content = str | list[Any]


def steps(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Ever simpler forms, each only where it differs from the one before."""
    known = list(messages)
    for simplified in (_short_ids, _system_first, _text_in_results, _no_tool_messages, _no_system):
        new = _merged(simplified(known))
        if new != known:
            known = new
            yield new


def _short_ids(messages: Sequence[Message]) -> list[Message]:
    """The ids of calls in nine letters and digits, which is what Mistral's templates want of them."""
    short: dict[str, str] = {}

    def renamed(call_id: Any) -> str:
        return short.setdefault(str(call_id), f"call{len(short):05d}")

    new: list[Message] = []
    for message in messages:
        if message.get("tool_calls"):
            calls = [{**call, "id": renamed(call.get("id"))} for call in message["tool_calls"]]
            new.append({**message, "tool_calls": calls})
        elif "tool_call_id" in message:
            new.append({**message, "tool_call_id": renamed(message["tool_call_id"])})
        else:
            new.append(message)
    return new


def _system_first(messages: Sequence[Message]) -> list[Message]:
    """Instructions given later are the user's words."""
    return [
        {"role": "user", "content": _content(message)} if i and message["role"] == "system" else message
        for i, message in enumerate(messages)
    ]


def _text_in_results(messages: Sequence[Message]) -> list[Message]:
    """What the user says beside the results of calls is a part of the last result: then the assistant follows."""
    new: list[Message] = []
    for message in messages:
        if new and message["role"] == "user" and new[-1]["role"] == "tool":
            new[-1] = {**new[-1], "content": _joined(new[-1], message)}
        else:
            new.append(message)
    return new


def _no_tool_messages(messages: Sequence[Message]) -> list[Message]:
    """A call is its JSON among the assistant's text, and a result is the user's words."""
    new: list[Message] = []
    for message in messages:
        if message["role"] == "tool":
            new.append({"role": "user", "content": _content(message)})
        elif message.get("tool_calls"):
            calls = [_call_text(call["function"]) for call in message["tool_calls"]]
            rest = {name: value for name, value in message.items() if name not in ("tool_calls", "content")}
            said: Message = {"content": _BETWEEN.join(calls)}
            new.append({**rest, "content": _joined(message, said)})
        else:
            new.append(message)
    return new


def _no_system(messages: Sequence[Message]) -> list[Message]:
    """The instructions begin the user's first message."""
    if not messages or messages[0]["role"] != "system":
        return list(messages)
    return [{"role": "user", "content": _content(messages[0])}, *messages[1:]]


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Neighbours of one role, but for the results of calls, as one message."""
    new: list[Message] = []
    for message in messages:
        role = message["role"]
        if new and role == new[-1]["role"] and role in ("user", "assistant", "system"):
            calls = [*new[-1].get("tool_calls", ()), *message.get("tool_calls", ())]
            own = {"tool_calls": calls} if calls else {}
            new[-1] = {**new[-1], **message, "content": _joined(new[-1], message), **own}
        else:
            new.append(message)
    return new


def _joined(first: Message, second: Message) -> Content:
    one, other = _content(first), _content(second)
    if isinstance(one, str) and isinstance(other, str):
        return _BETWEEN.join(filter(None, [one, other]))
    return [*_as_parts(one), *_as_parts(other)]


def _content(message: Message) -> Content:
    """One text; parts where some of them are media, which no text can say."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    if any(not isinstance(part, str) and "text" not in part for part in content):
        return list(content)
    return "\n".join(part if isinstance(part, str) else str(part["text"]) for part in content)


def _as_parts(content: Content) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments")
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(function.get("name"), ensure_ascii=False)}, "arguments": {written or "{}"}}}'
