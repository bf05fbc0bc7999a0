"""Bodies and replies of Anthropic's Messages API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from octavo.served.messages import function_tool
from octavo.server.openai.protocol.common import Int, Refusals, WireModel, inert
from octavo.server.openai.protocol.conversation import MAX_MESSAGES, MAX_PARTS
from octavo.server.openai.protocol.tools import MAX_TOOLS, check_name

#: Most characters of the id of a call.
_MAX_ID_CHARS = 256


class TextBlock(WireModel):
    type: Literal["text"]
    text: str
    cache_control: Any = None  # every prefix is cached; what comes of it is told in the usage
    citations: Any = None  # of a reply of another server's: where it had the text from


class ThinkingBlock(WireModel):
    """`signature` is not verified: the thinking came from whoever sends it."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(WireModel):
    """Thinking of another server, which only that one can read."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(WireModel):
    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARS)]
    name: str
    input: dict[str, Any]
    caller: Any = None  # the model itself; programs that call are no blocks of this server
    cache_control: Any = None


class Citations(WireModel):
    enabled: Literal[False] | None = None  # no model here is made to cite


class MediaBlock(WireModel):
    """A picture, or a document. What its source is is checked for models that can read it."""

    type: Literal["image", "document"]
    source: Any = None
    title: str | None = None
    context: str | None = None  # of a document: what the model is told of it
    citations: Citations | None = None
    cache_control: Any = None


_BLOCKS = ("text", "image", "document", "thinking", "redacted_thinking", "tool_use", "tool_result")


def _check_block(value: Any) -> Any:
    """Name what is not served: the union would only say which types there are."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        raise PydanticCustomError("block", "A content block should be an object with a `type`")
    if kind not in _BLOCKS:
        raise PydanticCustomError(
            "block", f"Blocks of type '{kind[:40]}' are not supported; a block should be one of {', '.join(_BLOCKS)}"
        )
    return value


def _check_text_block(value: Any) -> Any:
    if _check_block(value)["type"] != "text":
        raise PydanticCustomError("block", f"Only blocks of type 'text' can stand here, not '{value['type']}'")
    return value


def _check_result_block(value: Any) -> Any:
    if _check_block(value)["type"] not in ("text", "image", "document"):
        raise PydanticCustomError(
            "block", f"Only blocks of type 'text', 'image' or 'document' can stand here, not '{value['type']}'"
        )
    return value


OnlyText = Annotated[TextBlock, BeforeValidator(_check_text_block)]
ResultBlock = Annotated[
    Annotated[TextBlock | MediaBlock, Field(discriminator="type")], BeforeValidator(_check_result_block)
]


def _content_kind(value: Any) -> str | None:
    return "string" if isinstance(value, str) else "blocks" if isinstance(value, list) else None


_TEXT_OR_BLOCKS = Discriminator(
    _content_kind,
    custom_error_type="content_type",
    custom_error_message="Input should be a string or a list of content blocks",
)
TextContent = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[OnlyText], Field(max_length=MAX_PARTS), Tag("blocks")],
    _TEXT_OR_BLOCKS,
]

ResultContent = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[ResultBlock], Field(max_length=MAX_PARTS), Tag("blocks")],
    _TEXT_OR_BLOCKS,
]


class ToolResultBlock(WireModel):
    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1, max_length=_MAX_ID_CHARS)]
    content: ResultContent | None = None
    is_error: bool | None = None
    cache_control: Any = None


Block = Annotated[
    Annotated[
        TextBlock | MediaBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock,
        Field(discriminator="type"),
    ],
    BeforeValidator(_check_block),
]
Content = Annotated[
    Annotated[str, Tag("string")] | Annotated[list[Block], Field(max_length=MAX_PARTS), Tag("blocks")],
    _TEXT_OR_BLOCKS,
]


class MessageParam(WireModel):
    role: Literal["user", "assistant", "system"]
    content: Content


def _check_tool(value: Any) -> Any:
    """Tools that Anthropic runs, or whose schemas its models know by heart, have types of their own."""
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in (None, "custom"):
        raise PydanticCustomError(
            "tool_type",
            "Only tools with an `input_schema` of their own are served; this type is Anthropic's",
        )
    return value


class ToolParam(WireModel):
    type: Literal["custom"] | None = None
    name: Annotated[str, AfterValidator(check_name)]
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    eager_input_streaming: bool | None = None  # arguments are streamed as they are written
    cache_control: Any = None

    def for_template(self) -> dict[str, Any]:
        return function_tool(self.name, self.description, self.input_schema)


Tool = Annotated[ToolParam, BeforeValidator(_check_tool)]


class ToolChoiceParam(WireModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(WireModel):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(WireModel):
    # The alias: `schema` is a method of the base class.
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(WireModel):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class ConversationFields(WireModel):
    """What /v1/messages and its count of tokens share."""

    model: str
    messages: Annotated[list[MessageParam], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: TextContent | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None  # the older place of `output_config.format`
    cache_control: Any = None
    thread: Any = None  # refused in words that clients understand: `errors.ThreadsNotServed`


class CountRequest(ConversationFields):
    pass


class Metadata(WireModel):
    user_id: str | None = None


class MessagesRequest(ConversationFields):
    max_tokens: Annotated[Int, Field(ge=1)]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    metadata: Metadata | None = None  # the caller's own bookkeeping
    service_tier: Literal["auto", "standard_only"] | None = None  # there is one


REFUSALS: Refusals = {
    "mcp_servers": inert(None, []),
    "container": inert(None),
    "speed": inert(None, "standard"),
    "compaction": inert(None),  # asks for a summary in place of a reply
    "inference_geo": inert(None, "global"),  # nobody here knows where it runs
}


# ---------------------------------------------------------------- replies
class OutputTokensDetails(msgspec.Struct):
    thinking_tokens: int


class MessagesUsage(msgspec.Struct):
    """All of the prompt is `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int
    cache_read_input_tokens: int  # found in the prefix cache
    output_tokens: int
    # Whatever is computed stays in the cache for as long as there is room, and costs nothing more.
    cache_creation_input_tokens: int = 0
    output_tokens_details: OutputTokensDetails | UnsetType = UNSET  # on servers that tell the thinking apart
    service_tier: str = "standard"


class TextReply(msgspec.Struct, tag_field="type", tag="text"):
    text: str


class ThinkingReply(msgspec.Struct, tag_field="type", tag="thinking"):
    thinking: str
    signature: str


class ToolUseReply(msgspec.Struct, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: Any  # an object, or its JSON as it was written


BlockReply = TextReply | ThinkingReply | ToolUseReply


class MessageReply(msgspec.Struct, tag_field="type", tag="message"):
    id: str
    role: str
    model: str
    content: list[BlockReply]
    stop_reason: str | None
    stop_sequence: str | None
    usage: MessagesUsage


class CountReply(msgspec.Struct):
    input_tokens: int


# ---------------------------------------------------------------- events
class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    message: MessageReply


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    index: int
    content_block: BlockReply


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    partial_json: str


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    index: int


class StopDelta(msgspec.Struct):
    stop_reason: str | None
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    delta: StopDelta
    usage: MessagesUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    pass


StreamEvent = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class ModelInfo(msgspec.Struct, tag_field="type", tag="model"):
    id: str
    display_name: str
    created_at: str
    max_input_tokens: int
    max_tokens: int
    lifecycle: str = "active"


class ModelPage(msgspec.Struct):
    data: list[ModelInfo]
    has_more: bool
    first_id: str | None
    last_id: str | None
