"""From a Messages body to a conversation, as chat templates know conversations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest
from octavo.media.part import GivenMedia
from octavo.served.messages import tool_call, tool_message
from octavo.served.turn import Conversation
from octavo.server.anthropic.media import given_media
from octavo.server.anthropic.protocol import (
    ConversationFields,
    MediaBlock,
    MessageParam,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from octavo.server.openai.conversation import shown_tools
from octavo.server.openai.protocol.conversation import THINKING_VARIABLES

#: Agents begin their instructions with a block about billing that differs from request to request. No model needs it,
#: and with it no two requests would have a common prefix.
_BILLING: Final = "x-anthropic-billing-header"

#: A text, or parts: texts and media.
Content = str | list[Any]


def conversation_of(request: ConversationFields, config: ServerConfig) -> Conversation:
    """A last message of the assistant is the beginning of the reply. Raises `InvalidRequest`."""
    messages: list[dict[str, Any]] = []
    if request.system and (system := _parts(request.system)):
        messages.append({"role": "system", "content": system})
    names: dict[str, str] = {}  # the functions of calls by their ids: some templates name the function of a result
    for i, message in enumerate(request.messages):
        for shown in _shown(message, f"messages.{i}", names):
            _add(messages, shown)
    continues = request.messages[-1].role == "assistant"
    if continues and messages[-1].get("tool_calls"):
        raise InvalidRequest(
            "The last message calls tools: their results, as `tool_result` blocks, should follow.",
            f"messages.{len(request.messages) - 1}",
        )
    choice = request.tool_choice
    return Conversation(
        messages=messages,
        tools=shown_tools(config, request.tools, None if choice is None else choice.type),
        add_generation_prompt=not continues,
        continue_final_message=continues,
        chat_template_kwargs=template_kwargs(request),
        simplify=True,
    )


def template_kwargs(request: ConversationFields) -> dict[str, Any] | None:
    """What the request says of the model's thinking, under the names of templates."""
    found: dict[str, Any] = {}
    if request.thinking is not None:
        found |= dict.fromkeys(THINKING_VARIABLES, request.thinking.type != "disabled")
    if request.output_config is not None and request.output_config.effort is not None:
        found["reasoning_effort"] = request.output_config.effort
    return found or None


def unheard(request: ConversationFields, variables: frozenset[str]) -> list[str]:
    """The fields of the request that would reach no variable of the template."""
    found = []
    if request.thinking is not None and not variables.intersection(THINKING_VARIABLES):
        found.append("thinking.type")
    if request.output_config is not None and request.output_config.effort and "reasoning_effort" not in variables:
        found.append("output_config.effort")
    return found


def _shown(message: MessageParam, path: str, names: dict[str, str]) -> list[dict[str, Any]]:
    """One message of a template or several: each result of a call is one, and all come before the user's words."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    kinds = _KINDS[message.role]
    for j, block in enumerate(message.content):
        if not isinstance(block, kinds) and block.type != "redacted_thinking":
            raise InvalidRequest(
                f"A block of type '{block.type}' cannot stand in a message of the role '{message.role}'.",
                f"{path}.content.{j}",
            )
    blocks = message.content
    shown: dict[str, Any] = {"role": message.role, "content": _parts(blocks, f"{path}.content")}
    if thoughts := [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]:
        shown["reasoning_content"] = "\n".join(thoughts)
    if calls := [block for block in blocks if isinstance(block, ToolUseBlock)]:
        names.update((call.id, call.name) for call in calls)
        shown["tool_calls"] = [tool_call(call.id, call.name, call.input) for call in calls]
    results = [
        _result(block, f"{path}.content.{j}.content", names)
        for j, block in enumerate(blocks)
        if isinstance(block, ToolResultBlock)
    ]
    return results if results and not shown["content"] else [*results, shown]


_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "user": (TextBlock, MediaBlock, ToolResultBlock),
    "assistant": (TextBlock, ThinkingBlock, ToolUseBlock),
    "system": (TextBlock,),
}


def _result(block: ToolResultBlock, path: str, names: dict[str, str]) -> dict[str, Any]:
    content = _parts(block.content or "", path)
    if block.is_error:
        content = _failed(content)
    return tool_message(block.tool_use_id, content, names.get(block.tool_use_id))


def _failed(content: Content) -> Content:
    """Templates have no mark for a call that failed, so that the text must say it."""
    if not isinstance(content, str) and not isinstance(content[0], dict):
        return [{"type": "text", "text": "Error:"}, *content]
    first = content if isinstance(content, str) else content[0]["text"]
    if "error" in first[:32].lower():
        return content
    return (
        f"Error: {content}" if isinstance(content, str) else [{**content[0], "text": f"Error: {first}"}, *content[1:]]
    )


def _parts(content: str | Sequence[object], path: str = "system") -> Content:
    """A text, or several for the template to join, and media between them. Other blocks are left out."""
    if isinstance(content, str):
        return content
    parts: list[Any] = []
    for j, block in enumerate(content):
        if isinstance(block, TextBlock) and block.text and not block.text.startswith(_BILLING):
            parts.append({"type": "text", "text": block.text})
        elif isinstance(block, MediaBlock):
            parts += given_media(block, f"{path}.{j}")
    if len(parts) > 1 or any(isinstance(part, GivenMedia) for part in parts):
        return parts
    return "".join(part["text"] for part in parts)


def _add(messages: list[dict[str, Any]], new: dict[str, Any]) -> None:
    """Append a message; what one side says in several messages is one, as in Anthropic's API."""
    last = messages[-1] if messages else None
    if last is None or last["role"] != new["role"] or new["role"] == "tool":
        messages.append(new)
        return
    last["content"] = [*_as_list(last["content"]), *_as_list(new["content"])]
    for name in ("tool_calls", "reasoning_content"):
        if name in new:
            before = last.get(name)
            between = "\n" if name == "reasoning_content" else []
            last[name] = new[name] if before is None else before + between + new[name]


def _as_list(content: Content) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return content
