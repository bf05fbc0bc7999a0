"""Messages as chat templates see them, from APIs that spell a conversation in other pieces than messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.served.events import Call

Message = dict[str, Any]


def assistant_message(content: str | None, reasoning: str, calls: Sequence[Call]) -> Message:
    """What a model said: the same message as of a chat request that has it."""
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


def tool_message(call_id: str, content: str, name: str | None = None) -> Message:
    """What a call gave. `name`: the function's, where the call is known."""
    message: Message = {"role": "tool", "tool_call_id": call_id, "content": content}
    if name is not None:
        message["name"] = name
    return message
