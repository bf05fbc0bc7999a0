"""Chat completions with tools through the official client, asked for whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI


@dataclass
class Reply:
    """`calls`: (function, text of the arguments)."""

    calls: list[tuple[str, str]]
    content: str | None
    finish_reason: str
    call_ids: list[str] = field(default_factory=list, compare=False)
    num_tokens: int = field(default=0, compare=False)

    @property
    def decoded(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def reply_of(client: OpenAI, **fields: Any) -> Reply:
    """The reply at temperature 0; streamed it must be the same."""
    fields = {"temperature": 0} | fields
    whole = client.chat.completions.create(**fields)
    (choice,) = whole.choices
    calls = choice.message.tool_calls or []
    reply = Reply(
        [(call.function.name, call.function.arguments) for call in calls],
        choice.message.content, choice.finish_reason, [call.id for call in calls],
        whole.usage.completion_tokens if whole.usage else 0,
    )  # fmt: skip
    streamed = folded(client.chat.completions.create(**fields, stream=True))
    assert (streamed.calls, streamed.content, streamed.finish_reason) == (
        reply.calls, reply.content or "", reply.finish_reason,
    )  # fmt: skip
    assert len(streamed.call_ids) == len(reply.call_ids) == len(set(reply.call_ids))
    return reply


def folded(stream: Iterable[Any]) -> Reply:
    """The reply that the events of a stream make together (F25)."""
    reply, content, reasons = Reply([], "", ""), "", []
    for event in stream:
        for choice in event.choices:
            content += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for news in choice.delta.tool_calls or []:
                if news.id is not None:
                    assert news.index == len(reply.calls) and news.type == "function"
                    reply.call_ids.append(news.id)
                    reply.calls.append((news.function.name, ""))
                name, arguments = reply.calls[news.index]
                reply.calls[news.index] = (name, arguments + (news.function.arguments or ""))
    (reply.finish_reason,) = reasons
    reply.content = content
    return reply
