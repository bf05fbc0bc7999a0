"""Input items: messages, calls of functions and of tools of MCP servers, their outputs, reasoning, references. All
others are refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from octavo.server.openai.protocol.common import WireModel
from octavo.server.openai.protocol.conversation import MAX_MESSAGES, MAX_PARTS
from octavo.server.responses.protocol.encrypted import decrypted
from octavo.server.responses.protocol.ids import Id as Id
from octavo.server.responses.protocol.ids import Item as Item
from octavo.server.responses.protocol.ids import new_id as new_id
from octavo.server.responses.protocol.mcp import (
    ApprovalRequestInput,
    ApprovalResponseInput,
    MCPCallInput,
    MCPListInput,
)
from octavo.text.formats.base import MAX_NAME

Status = Literal["in_progress", "completed", "incomplete"]

#: Kinds of parts that are media -> what a model of text is said to take none of.
MEDIA_PARTS = {"input_image": "images", "input_file": "files", "input_audio": "audio"}
_UNREADABLE = {**MEDIA_PARTS, "computer_screenshot": "images"}
#: Kinds of parts that are text -> the field that holds it.
_TEXTS = {
    "input_text": "text", "output_text": "text", "text": "text", "summary_text": "text", "reasoning_text": "text",
    "refusal": "refusal",
}  # fmt: skip


def _check_part(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise PydanticCustomError("part_type", "A content part should be an object with a `type`")
    if kind in _UNREADABLE:
        raise PydanticCustomError("part_kind", not_taken(kind).rstrip("."))
    if kind not in _TEXTS:
        raise PydanticCustomError("part_kind", f"A content part should be one of {', '.join(_TEXTS)}")
    if not isinstance(value.get(_TEXTS[kind]), str):
        raise PydanticCustomError("part_text", f"A part of the type {kind} should have a string `{_TEXTS[kind]}`")
    return value


def _check_any_part(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    return value if isinstance(kind, str) and kind in MEDIA_PARTS else _check_part(value)


def not_taken(kind: str) -> str:
    return f"`{kind}` is not supported: this server takes text, and no {_UNREADABLE[kind]}."


Part = Annotated[dict[str, Any], BeforeValidator(_check_part)]
#: A text or a medium; what the latter holds is looked at for models that can read it.
AnyPart = Annotated[dict[str, Any], BeforeValidator(_check_any_part)]


def _content_kind(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "parts" if isinstance(value, list) else None


#: A text, or parts of it.
Text = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[AnyPart], Field(max_length=MAX_PARTS), Tag("parts")],
    Discriminator(
        _content_kind,
        custom_error_type="content_type",
        custom_error_message="Input should be a string or a list of parts",
    ),
]


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The content of an item as one text, without its media."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part[_TEXTS[part["type"]]] for part in content if part["type"] in _TEXTS)


def _parts(content: str | list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The parts as they are kept: of the kind that the API has for the role."""
    own: list[dict[str, Any]] = [{"type": kind, "text": content}] if isinstance(content, str) else []
    for part in content if isinstance(content, list) else ():
        if part["type"] in MEDIA_PARTS and kind == "input_text":
            own.append(part)
            continue
        refusal = part["type"] == "refusal" and kind == "output_text"
        own.append(
            {"type": "refusal", "refusal": part["refusal"]} if refusal else {"type": kind, "text": text_of([part])}
        )
    return [part | {"annotations": []} if part["type"] == "output_text" else part for part in own]


class MessageInput(WireModel):
    """A message; the type may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text
    id: Id | None = None
    status: Status | None = None

    @model_validator(mode="after")
    def _check_role(self) -> Self:
        if self.role == "assistant" and isinstance(self.content, list):
            for part in self.content:
                if part["type"] in MEDIA_PARTS:
                    raise PydanticCustomError("part_kind", "A message of the assistant has text only")
        return self

    def kept(self) -> Item:
        kind = "output_text" if self.role == "assistant" else "input_text"
        return {
            "type": "message",
            "id": self.id or new_id("msg"),
            "status": self.status or "completed",
            "role": self.role,
            "content": _parts(self.content, kind),
        }


class CallInput(WireModel):
    """A call that a model made."""

    type: Literal["function_call"]
    call_id: Id
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
    arguments: str
    id: Id | None = None
    status: Status | None = None

    def kept(self) -> Item:
        return {
            "type": "function_call",
            "id": self.id or new_id("fc"),
            "status": self.status or "completed",
            "call_id": self.call_id,
            "name": self.name,
            "arguments": self.arguments,
        }


class CallOutputInput(WireModel):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Id
    output: Text
    id: Id | None = None
    status: Status | None = None

    def kept(self) -> Item:
        return {
            "type": "function_call_output",
            "id": self.id or new_id("fco"),
            "status": self.status or "completed",
            "call_id": self.call_id,
            "output": self.output if isinstance(self.output, str) else _parts(self.output, "input_text"),
        }


def _check_encrypted(value: str) -> str:
    if decrypted(value) is None:
        raise PydanticCustomError(
            "encrypted", "Another server made this, and only that one can read it: leave the field out"
        )
    return value


class ReasoningInput(WireModel):
    """What a model thought before its answer."""

    type: Literal["reasoning"]
    summary: Annotated[list[Part], Field(max_length=MAX_PARTS)] = Field(default_factory=list)
    content: Annotated[list[Part] | None, Field(max_length=MAX_PARTS)] = None
    encrypted_content: Annotated[str, AfterValidator(_check_encrypted)] | None = None
    id: Id | None = None
    status: Status | None = None

    def kept(self) -> Item:
        return {
            "type": "reasoning",
            "id": self.id or new_id("rs"),
            "summary": [{"type": "summary_text", "text": text_of([part])} for part in self.summary],
            "content": [{"type": "reasoning_text", "text": text} for text in self._texts()],
            "status": self.status or "completed",
        }

    def _texts(self) -> list[str]:
        """What was thought: of some clients it comes as `encrypted_content` only."""
        if not self.content and self.encrypted_content is not None:
            return [decrypted(self.encrypted_content) or ""]
        return [text_of([part]) for part in self.content or ()]


class ReferenceInput(WireModel):
    """An item that the server has kept."""

    type: Literal["item_reference"] = "item_reference"
    id: Id


_KINDS = (
    "message", "function_call", "function_call_output", "reasoning", "item_reference", "mcp_list_tools", "mcp_call",
    "mcp_approval_request", "mcp_approval_response",
)  # fmt: skip


def _kind(value: Any) -> str:
    """The type of an item; where it is left out, that of what it looks like."""
    if not isinstance(value, dict):
        return str(getattr(value, "type", ""))  # made here, and checked
    named = value.get("type")
    if named is None:
        return "message" if "role" in value or "content" in value else "item_reference"
    return named if isinstance(named, str) else ""


def _check_kind(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("item", "An item should be an object")
    if (kind := _kind(value)) not in _KINDS:
        raise PydanticCustomError(
            "item_kind", f"An item of the type `{kind[:64]}` is not supported; those are: {', '.join(_KINDS)}"
        )
    # A type may be null.
    return value if value.get("type", kind) is not None else value | {"type": kind}


#: One of the input items.
InputItem = Annotated[
    Annotated[MessageInput, Tag("message")]
    | Annotated[CallInput, Tag("function_call")]
    | Annotated[CallOutputInput, Tag("function_call_output")]
    | Annotated[ReasoningInput, Tag("reasoning")]
    | Annotated[ReferenceInput, Tag("item_reference")]
    | Annotated[MCPListInput, Tag("mcp_list_tools")]
    | Annotated[MCPCallInput, Tag("mcp_call")]
    | Annotated[ApprovalRequestInput, Tag("mcp_approval_request")]
    | Annotated[ApprovalResponseInput, Tag("mcp_approval_response")],
    Discriminator(_kind),
    BeforeValidator(_check_kind),
]
InputItems = Annotated[list[InputItem], Field(max_length=MAX_MESSAGES)]


def _input_kind(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "items" if isinstance(value, list) else None


#: A text of the user's, or items.
Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[InputItems, Tag("items")],
    Discriminator(
        _input_kind, custom_error_type="input_type", custom_error_message="Input should be a string or a list of items"
    ),
]


def as_items(value: str | list[Any] | None) -> list[Any]:
    """The items of an `input`."""
    if isinstance(value, str):
        return [MessageInput(role="user", content=value)]
    return value or []
