"""What a request may ask of the chat template, and what of it goes unheard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from octavo.config import ServerConfig, nearest
from octavo.errors import InvalidRequest
from octavo.server.errors import clip
from octavo.server.exchange import Exchange
from octavo.server.serving import Serving
from octavo.server.state import ServerState


class TemplateFields(Protocol):
    """The fields of a request with a conversation."""

    @property
    def chat_template(self) -> str | None: ...

    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None: ...


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


def note_unused_kwargs(serving: Serving, exchange: Exchange, request: TemplateFields) -> None:
    """T24, U20: name the `chat_template_kwargs` that no template of the server reads; strict servers refuse them.

    Whoever brings a template knows what it reads.
    """
    if not request.chat_template_kwargs or request.chat_template is not None:
        return
    variables = serving.state.renderer.template_variables
    unused = sorted(request.chat_template_kwargs.keys() - variables)
    if unused and serving.state.config.strict_requests:
        name = clip(unused[0], 64)
        raise InvalidRequest(
            f"The chat template has no variable `{name}`{nearest(name, variables)}", f"chat_template_kwargs.{name}"
        )
    if unused:
        serving.note_ignored(exchange, [f"chat_template_kwargs.{name}" for name in unused])


def shown_tools(
    config: ServerConfig, tools: Sequence[Mapping[str, Any]] | None, tool_choice: object
) -> Sequence[Mapping[str, Any]] | None:
    """T29: the tools that the template gets."""
    if tool_choice == "none" and config.exclude_tools_when_tool_choice_none:
        return None
    return tools
