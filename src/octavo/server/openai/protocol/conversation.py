"""The conversation in a request body and the options of its rendering, which chat and /tokenize share (N16)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from octavo.base.errors import InvalidRequest
from octavo.media.part import part_type
from octavo.served.turn import MediaOptions
from octavo.server.openai.protocol.common import WireModel
from octavo.server.openai.protocol.tools import MAX_TOOLS, ToolChoiceField, ToolDefinition

#: Most messages in a request, and most parts in a message.
MAX_MESSAGES = 4096
MAX_PARTS = 1024
#: Names in templates for the switch of the model's thinking.
THINKING_VARIABLES = ("enable_thinking", "thinking")


def _check_part(part: Any) -> Any:
    """Check the shape of a part only: the renderer knows which kinds of parts the model can take."""
    if not isinstance(part, dict) or not isinstance(part_type(part, None), str):
        raise PydanticCustomError("part_type", "A content part should be an object with a `type`")
    return part


Part = Annotated[dict[str, Any], BeforeValidator(_check_part)]


def _content_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "parts" if isinstance(value, list) else None


#: Told apart by a function, so that an error in a part is not reported as "no string" too.
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Field(max_length=MAX_PARTS), Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="Input should be a string, a list of parts, or null",
    ),
]


def _check_role(value: str) -> str:
    if not value or len(value) > 64 or not value.isprintable():
        raise PydanticCustomError("role", "A role should be a short printable name")
    return value


class Message(WireModel):
    """One message. Fields that only a template knows (`reasoning_content`, ...) pass through to it."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, AfterValidator(_check_role)]
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def for_template(self) -> dict[str, Any]:
        """What the template sees: the fields that were given, without nulls other than the content's."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        return {"role": self.role, "content": self.content, **given}

    def text(self) -> str:
        """The content as one text, each part on a line of its own (T12)."""
        if isinstance(self.content, list):
            return "\n".join(text for part in self.content if isinstance(text := part.get("text"), str))
        return self.content or ""


Messages = Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]


class ConversationFields(WireModel):
    """The fields of a request for the chat template, beside the messages."""

    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Annotated[list[ToolDefinition] | None, Field(min_length=1, max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoiceField = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    enable_thinking: bool | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None

    @property
    def media_options(self) -> MediaOptions:
        return MediaOptions(self.mm_processor_kwargs, self.media_io_kwargs)

    @property
    def template_kwargs(self) -> dict[str, Any] | None:
        """`chat_template_kwargs`, and the fields for templates under their names there; the former win."""
        own: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            own["reasoning_effort"] = self.reasoning_effort
        thinks = False if self.reasoning_effort == "none" else self.enable_thinking
        if thinks is not None:
            own |= dict.fromkeys(THINKING_VARIABLES, thinks)
        if self.verbosity is not None:
            own["verbosity"] = self.verbosity
        return own | self.chat_template_kwargs if self.chat_template_kwargs else own or None

    def template_switches(self) -> dict[str, frozenset[str]]:
        """Fields that were set -> the variables of a template that they reach."""
        switches = {}
        if self.reasoning_effort is not None:
            off = self.reasoning_effort == "none"
            switches["reasoning_effort"] = frozenset({"reasoning_effort", *(THINKING_VARIABLES if off else ())})
        if self.enable_thinking is not None:
            switches["enable_thinking"] = frozenset(THINKING_VARIABLES)
        if self.verbosity is not None:
            switches["verbosity"] = frozenset({"verbosity"})
        return switches


def check_prompt_options(body: Mapping[str, Any]) -> None:
    """Refuse a request that asks for both ways to end the prompt (T20)."""
    if body.get("continue_final_message") and body.get("add_generation_prompt"):
        raise InvalidRequest(
            "`continue_final_message` and `add_generation_prompt` cannot both be true.", "continue_final_message"
        )
