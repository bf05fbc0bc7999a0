"""Messages, calls and tools as chat templates know them, from APIs that spell a conversation in other pieces."""

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
        message["tool_calls"] = [tool_call(call.call_id, call.name, call.arguments) for call in calls]
    return message


def tool_call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
    """A call within a message. `arguments`: an object, or its JSON."""
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_message(call_id: str, content: str | list[Any], name: str | None = None) -> Message:
    """What a call gave. `name`: the function's, where the call is known."""
    message: Message = {"role": "tool", "tool_call_id": call_id, "content": content}
    if name is not None:
        message["name"] = name
    return message


def function_tool(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A function that may be called: the same tool as of a chat request that has it."""
    shown: dict[str, Any] = {"name": name}
    if description is not None:
        shown["description"] = description
    if parameters is not None:
        shown["parameters"] = parameters
    return {"type": "function", "function": shown}
