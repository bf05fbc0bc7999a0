"""From a request body to a conversation, and the names of template variables that no template reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest, clip
from octavo.base.suggest import nearest
from octavo.served.model import ServedModel
from octavo.served.turn import Conversation
from octavo.server.http.exchange import Exchange
from octavo.server.openai.protocol.conversation import ConversationFields, Message
from octavo.server.openai.serving import Serving


def conversation_of(request: ConversationFields, messages: list[Message], config: ServerConfig) -> Conversation:
    """The conversation of a request body. `continue_final_message` turns the generation prompt off."""
    choice = request.tool_choice
    return Conversation(
        messages=[message.for_template() for message in messages],
        tools=shown_tools(config, request.tools, None if choice is None else choice.mode),
        documents=request.documents,
        add_generation_prompt=not request.continue_final_message and request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        chat_template=request.chat_template,
        chat_template_kwargs=request.template_kwargs,
        add_special_tokens=bool(request.add_special_tokens),
        media_options=request.media_options,
    )


def note_unheard(serving: Serving, model: ServedModel, exchange: Exchange, request: ConversationFields) -> None:
    """Name in the reply the template variables of the request that no template of the server reads (T24, U20).

    Strict servers refuse such `chat_template_kwargs`. A request that brings its own template is not checked.
    """
    if request.chat_template is not None:
        return
    variables = model.renderer.template_variables
    unheard = unread_variables(serving, model, request.chat_template_kwargs)
    unheard += [name for name, known in request.template_switches().items() if not variables & known]
    if unheard:
        serving.note_ignored(exchange, unheard)


def unread_variables(serving: Serving, model: ServedModel, kwargs: Mapping[str, Any] | None) -> list[str]:
    """The paths of those `chat_template_kwargs` that no template reads. Strict servers raise `InvalidRequest`."""
    variables = model.renderer.template_variables
    unused = sorted((kwargs or {}).keys() - variables)
    if unused and serving.state.config.strict_requests:
        name = clip(unused[0], 64)
        raise InvalidRequest(
            f"The chat template has no variable `{name}`{nearest(name, variables)}", f"chat_template_kwargs.{name}"
        )
    return [f"chat_template_kwargs.{name}" for name in unused]


class ShownTool(Protocol):
    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates know tools."""
        ...


def shown_tools(
    config: ServerConfig, tools: Sequence[ShownTool] | None, choice: str | None
) -> list[dict[str, Any]] | None:
    """The tools that the template gets; None when the choice is "none" and the server hides them then (T29)."""
    if choice == "none" and config.exclude_tools_when_tool_choice_none:
        return None
    return [tool.for_template() for tool in tools] if tools else None
