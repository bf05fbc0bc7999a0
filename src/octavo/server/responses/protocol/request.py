"""POST /v1/responses and /v1/responses/input_tokens: request bodies, and the queries of the routes beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, PlainValidator, Tag
from pydantic_core import PydanticCustomError

from octavo.base.params import MAX_LOGPROB_TOKEN_IDS
from octavo.served.messages import function_tool
from octavo.served.turn import ToolChoice
from octavo.server.openai.protocol.common import (
    COMMON_REFUSALS,
    Int,
    LogitBias,
    Refusals,
    Stop,
    WireModel,
    inert,
)
from octavo.server.openai.protocol.samplers import RepetitionFields, SamplerFields
from octavo.server.openai.protocol.tools import MAX_TOOLS, FunctionName
from octavo.server.responses.protocol.items import Id, Input
from octavo.server.responses.protocol.mcp import MAX_SERVERS, MCPTool

#: OpenAI's bounds of `metadata`.
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
#: Kinds of tools that a server runs itself.
HOSTED_TOOLS = frozenset(
    {
        "web_search", "web_search_preview", "file_search", "code_interpreter", "computer", "computer_use_preview",
        "image_generation", "local_shell", "shell", "apply_patch", "tool_search", "namespace",
        "programmatic_tool_calling",
    }
)  # fmt: skip
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"


def _check_metadata(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_PAIRS:
        raise PydanticCustomError("metadata", f"At most {MAX_PAIRS} pairs are allowed")
    if any(len(key) > MAX_KEY_CHARS or len(text) > MAX_VALUE_CHARS for key, text in value.items()):
        raise PydanticCustomError(
            "metadata", f"A key has at most {MAX_KEY_CHARS} characters, and a value {MAX_VALUE_CHARS}"
        )
    return value


Metadata = Annotated[dict[str, str], AfterValidator(_check_metadata)]


def _check_tool(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "custom":
        raise PydanticCustomError("tool", "A tool of the type `custom` is not supported: give a `function`")
    if isinstance(kind, str) and kind.split("_2025")[0].split("_2026")[0] in HOSTED_TOOLS:
        raise PydanticCustomError(
            "tool",
            f"`{kind[:64]}` is not supported: this server runs no tools but those of MCP servers. Give a `function` or "
            "an `mcp`",
        )
    return value


def _tool_kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "mcp" if kind == "mcp" else "function"


class FunctionTool(WireModel):
    """A function that the caller runs."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    # A function is shown to the model at once, which calls it itself and waits for what it gives.
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    async_: Annotated[Literal[False] | None, Field(alias="async")] = None

    def for_template(self) -> dict[str, Any]:
        return function_tool(self.name, self.description, self.parameters)

    def shown(self) -> dict[str, Any]:
        """As the response tells of it."""
        return self.model_dump(mode="json", include={"type", "name", "description", "parameters", "strict"})


def _check_tools(tools: list[Any]) -> list[Any]:
    labels = [tool.server_label for tool in tools if isinstance(tool, MCPTool)]
    if len(labels) > MAX_SERVERS:
        raise PydanticCustomError("servers", f"At most {MAX_SERVERS} MCP servers are allowed")
    if len(set(labels)) < len(labels):
        raise PydanticCustomError("servers", "Two MCP servers have the same `server_label`")
    return tools


Tool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[MCPTool, Tag("mcp")],
    Discriminator(_tool_kind),
    BeforeValidator(_check_tool),
]
Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_check_tools)]


@dataclass(frozen=True)
class ServerChoice:
    """A tool of an MCP server, or any of them."""

    label: str
    name: str | None


@dataclass(frozen=True)
class MixedChoice:
    """A `tool_choice` that is about MCP servers too, whose tools are known later."""

    mode: Literal["auto", "required"]
    entries: tuple[str | ServerChoice, ...]  # functions' names, and servers


_CHOICE_SHAPE = (
    'Input should be "none", "auto", "required", {"type": "function", "name": "my_function"}, or {"type": '
    '"allowed_tools", "mode": "auto" or "required", "tools": [{"type": "function", "name": "my_function"}]}, or '
    '{"type": "mcp", "server_label": "my_server"}'
)


def _entry(value: Any) -> str | ServerChoice | None:
    """What an entry of `allowed_tools`, or a whole choice, names."""
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if value.get("type") == "mcp":
        label = value.get("server_label")
        return ServerChoice(label, name) if isinstance(label, str) and isinstance(name, str | None) else None
    return name if isinstance(name, str) else None


def _check_choice(value: Any) -> ToolChoice | MixedChoice | None:
    if value is None:
        return None
    if value in ("none", "auto", "required") and isinstance(value, str):
        return ToolChoice(value)  # type: ignore[arg-type]  # one of them
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function" and isinstance(value.get("name"), str):
        return ToolChoice("named", (value["name"],))
    if kind == "mcp" and (named := _entry(value)) is not None:
        return MixedChoice("required", (named,))
    if kind == "allowed_tools" and value.get("mode") in ("auto", "required") and isinstance(value.get("tools"), list):
        entries = tuple(entry for tool in value["tools"] if (entry := _entry(tool)) is not None)
        if entries and len(entries) == len(value["tools"]):
            names = tuple(entry for entry in entries if isinstance(entry, str))
            if len(names) == len(entries):
                return ToolChoice(value["mode"], names)
            return MixedChoice(value["mode"], entries)
    raise PydanticCustomError("tool_choice", _CHOICE_SHAPE)


ToolChoiceField = Annotated[
    ToolChoice | MixedChoice | None,
    PlainValidator(_check_choice, json_schema_input_type=Literal["none", "auto", "required"] | dict[str, Any] | None),
]


class ReasoningOptions(WireModel):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    # Which thoughts of earlier turns the model sees, and how much is made of one: both as the template has it.
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None  # the older name


class TextFormat(WireModel):
    """`schema` belongs to the type json_schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    # pydantic has a method of that name.
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class TextOptions(WireModel):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ConversationId(WireModel):
    id: Id


def _check_include(value: str) -> str:
    if value in (LOGPROBS, ENCRYPTED):
        return value
    raise PydanticCustomError("include", f"Nothing but {LOGPROBS} and {ENCRYPTED} can be included")


Include = Annotated[list[Annotated[str, AfterValidator(_check_include)]], Field(max_length=32)]


class ConversationFields(WireModel):
    """What says what the model sees, for both routes."""

    model: str | None = None
    input: Input | None = None
    instructions: str | None = None
    previous_response_id: Id | None = None
    conversation: Id | ConversationId | None = None
    tools: Tools | None = None
    tool_choice: ToolChoiceField = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    text: TextOptions | None = None
    truncation: Literal["auto", "disabled"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None

    @property
    def conversation_id(self) -> str | None:
        return self.conversation.id if isinstance(self.conversation, ConversationId) else self.conversation


class StreamOptions(WireModel):
    include_obfuscation: Literal[False] | None = None  # what hides lengths from who listens is TLS's or nobody's


class ResponsesRequest(ConversationFields, SamplerFields):
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: bool | None = None
    background: bool | None = None
    include: Include | None = None
    max_output_tokens: Int | None = None
    max_tool_calls: Annotated[Int | None, Field(ge=1)] = None
    metadata: Metadata | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Int | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    user: str | None = None
    # beyond OpenAI's, as in chat
    top_k: Int | None = None
    min_p: float | None = None
    seed: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repetition_detection: RepetitionFields | None = None
    logprob_token_ids: Annotated[list[Int] | None, Field(max_length=MAX_LOGPROB_TOKEN_IDS)] = None
    logit_bias: LogitBias = None
    stop: Stop = Field(default_factory=list)
    ignore_eos: bool | None = None
    min_tokens: Int | None = None
    thinking_token_budget: Int | None = None
    cache_salt: str | None = None
    priority: Int | None = None

    @property
    def keeps(self) -> bool:
        return self.store is not False


#: Fields that go to `SamplingParams` under their own name.
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "ignore_eos", "min_tokens",
)  # fmt: skip

REFUSALS: Refusals = {
    **COMMON_REFUSALS,
    "prompt": inert(None),
    "moderation": inert(None),
    "image": inert(None),
    "access_programs": inert(None),
    "context_management": inert(None, []),
    "background_options": inert(None),
    "prompt_cache_options": inert(None),
    "prompt_cache_retention": inert(None, "in_memory"),
    # Of chat: to ignore them would drop a constraint or a bound.
    "messages": inert(None),
    "n": inert(None, 1),
    "max_tokens": inert(None),
    "max_completion_tokens": inert(None),
    "response_format": inert(None),
    "structured_outputs": inert(None),
    "guided_json": inert(None),
    "guided_regex": inert(None),
    "guided_choice": inert(None),
    "guided_grammar": inert(None),
}


class InputTokensRequest(ConversationFields):
    """The fields of a response that its prompt depends on."""


class RetrieveQuery(WireModel):
    stream: bool | None = None
    starting_after: Annotated[int | None, Field(ge=0)] = None


class ListQuery(WireModel):
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    order: Literal["asc", "desc"] = "desc"
    after: Id | None = None
