"""Bodies and replies of Ollama's API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import ConfigDict, Field

from octavo.server.openai.protocol.chat import ContentLogprob
from octavo.server.openai.protocol.common import Int, Refusals, WireModel, inert
from octavo.server.openai.protocol.conversation import MAX_MESSAGES, MAX_PARTS
from octavo.server.openai.protocol.samplers import SamplerFields
from octavo.server.openai.protocol.tools import MAX_TOOLS, ToolDefinition

#: Each in base64.
Images = Annotated[list[str] | None, Field(max_length=MAX_PARTS)]


class CalledFunction(WireModel):
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCall(WireModel):
    id: str | None = None
    function: CalledFunction


class OllamaMessage(WireModel):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: Images = None
    tool_calls: list[OllamaCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Options(SamplerFields):
    """What is sampled with. Fields that are not here concern how Ollama loads a model, or are not supported."""

    model_config = ConfigDict(extra="allow")

    num_predict: Int | None = None
    num_ctx: Int | None = None
    temperature: float | None = None
    top_k: Int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


#: Options that change what is sampled, and cannot be heeded: refused unless they ask for nothing.
OPTION_REFUSALS: Refusals = {
    "tfs_z": inert(None, 1, 1.0),
    "penalize_newline": inert(None, True),
}


class OllamaFields(WireModel):
    """What /api/chat and /api/generate share."""

    model: str
    stream: bool | None = None  # default: true
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None


class OllamaChatRequest(OllamaFields):
    messages: Annotated[list[OllamaMessage] | None, Field(max_length=MAX_MESSAGES)] = None
    tools: Annotated[list[ToolDefinition] | None, Field(max_length=MAX_TOOLS)] = None


class OllamaGenerateRequest(OllamaFields):
    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: Images = None


GENERATE_REFUSALS: Refusals = {
    "template": inert(None, ""),
    "context": inert(None, []),
    "width": inert(None, 0),
    "height": inert(None, 0),
    "steps": inert(None, 0),
}


class EmbedRequest(WireModel):
    """`options` and `keep_alive` concern how Ollama loads a model."""

    model: str
    input: str | Annotated[list[str], Field(max_length=100_000)]
    truncate: bool | None = None
    dimensions: Int | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbeddingsRequest(WireModel):
    model: str
    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbedReply(msgspec.Struct):
    """Durations are in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsReply(msgspec.Struct):
    embedding: list[float]


class ShowRequest(WireModel):
    model: str | None = None
    name: str | None = None  # the older name of `model`
    verbose: bool | None = None


# ---------------------------------------------------------------- replies
class ReplyFunction(msgspec.Struct):
    index: int
    name: str
    arguments: Any


class ReplyCall(msgspec.Struct):
    id: str
    function: ReplyFunction


class OllamaReplyMessage(msgspec.Struct):
    content: str
    role: str = "assistant"
    thinking: str | UnsetType = UNSET
    tool_calls: list[ReplyCall] | UnsetType = UNSET


class OllamaReply(msgspec.Struct, kw_only=True):
    """Durations are in nanoseconds; they and the counts stand in the last line only."""

    model: str
    created_at: str
    done: bool
    done_reason: str | UnsetType = UNSET
    total_duration: int | UnsetType = UNSET
    load_duration: int | UnsetType = UNSET
    prompt_eval_count: int | UnsetType = UNSET
    prompt_eval_duration: int | UnsetType = UNSET
    eval_count: int | UnsetType = UNSET
    eval_duration: int | UnsetType = UNSET
    logprobs: list[ContentLogprob] | UnsetType = UNSET


class OllamaChatReply(OllamaReply, kw_only=True):
    message: OllamaReplyMessage


class OllamaGenerateReply(OllamaReply, kw_only=True):
    response: str
    thinking: str | UnsetType = UNSET


class ModelDetails(msgspec.Struct):
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str
    parent_model: str = ""


class ListedModel(msgspec.Struct):
    name: str
    model: str
    modified_at: str
    size: int  # bytes
    digest: str
    details: ModelDetails


class TagsReply(msgspec.Struct):
    models: list[ListedModel]


class RunningModel(msgspec.Struct):
    name: str
    model: str
    size: int
    digest: str
    details: ModelDetails
    expires_at: str
    size_vram: int
    context_length: int


class RunningReply(msgspec.Struct):
    models: list[RunningModel]


class ShowReply(msgspec.Struct):
    modelfile: str
    parameters: str
    details: ModelDetails
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class OllamaVersion(msgspec.Struct):
    version: str
    server: str
