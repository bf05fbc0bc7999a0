"""Conversations to prompts: what a request may ask of the chat template, and what of it goes unheard."""

from __future__ import annotations

from typing import Any

from octavo.config import ServerConfig
from octavo.errors import InvalidRequest
from octavo.server.errors import clip
from octavo.server.exchange import Exchange
from octavo.server.protocol.conversation import ConversationFields, Message
from octavo.server.serving import Serving
from octavo.server.state import ServerState
from octavo.suggest import nearest


def check_template(state: ServerState, chat_template: str | None) -> None:
    """T22: a name of the tokenizer's templates, or with `--trust-request-chat-template` a template.

    Stands before every rendering, whichever route asks for it. Raises `InvalidRequest`.
    """
    if chat_template is None or chat_template in state.renderer.template_names:
        return
    if not state.config.trust_request_chat_template:
        names = ", ".join(sorted(state.renderer.template_names)) or "none"
        raise InvalidRequest(
            "This server renders no templates of requests (--trust-request-chat-template is off); "
            f"`chat_template` can only name one of the model's own: {names}.",
            "chat_template",
        )


async def render_chat(serving: Serving, request: ConversationFields, messages: list[Message]) -> list[int]:
    """Token ids of a conversation. Continuing the last message turns the generation prompt off."""
    check_template(serving.state, request.chat_template)
    plain = [message.for_template() for message in messages]
    options: dict[str, Any] = {
        "tools": shown_tools(serving.state.config, request),
        "documents": request.documents,
        "add_generation_prompt": not request.continue_final_message and request.add_generation_prompt is not False,
        "continue_final_message": bool(request.continue_final_message),
        "chat_template": request.chat_template,
        "chat_template_kwargs": request.template_kwargs,
        "add_special_tokens": bool(request.add_special_tokens),
    }
    return await serving.tokenize(
        _num_chars(plain) + _num_chars(options) - len(request.chat_template or ""),
        lambda: serving.state.renderer.render_chat(plain, **options),
        "messages",
        is_slow=request.chat_template is not None,
    )


def note_unheard(serving: Serving, exchange: Exchange, request: ConversationFields) -> None:
    """T24, U20: name what the request sets for a template that no template of the server reads.

    Strict servers refuse such `chat_template_kwargs`. Whoever brings a template knows what it reads.
    """
    if request.chat_template is not None:
        return
    variables = serving.state.renderer.template_variables
    unused = sorted((request.chat_template_kwargs or {}).keys() - variables)
    if unused and serving.state.config.strict_requests:
        name = clip(unused[0], 64)
        raise InvalidRequest(
            f"The chat template has no variable `{name}`{nearest(name, variables)}", f"chat_template_kwargs.{name}"
        )
    unheard = [f"chat_template_kwargs.{name}" for name in unused]
    unheard += [name for name, known in request.thinking_switches().items() if not variables & known]
    if unheard:
        serving.note_ignored(exchange, unheard)


def shown_tools(config: ServerConfig, request: ConversationFields) -> list[dict[str, Any]] | None:
    """The tools that the template gets (T7, T29)."""
    choice = request.tool_choice
    if choice is not None and choice.mode == "none" and config.exclude_tools_when_tool_choice_none:
        return None
    return [tool.for_template() for tool in request.tools] if request.tools else None


def _num_chars(value: Any) -> int:
    """Characters of all strings in a JSON value, whose depth is bounded."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, list) else 0
