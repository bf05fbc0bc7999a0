"""POST /v1/chat/completions: request and reply bodies."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from octavo.server.openai.protocol.common import (
    COMMON_REFUSALS,
    Int,
    Progress,
    PromptLogprob,
    Refusals,
    RequestMetrics,
    SamplingFields,
    Usage,
    inert,
)
from octavo.server.openai.protocol.conversation import ConversationFields, Messages
from octavo.server.openai.protocol.tools import ToolCall, ToolCallDelta


class ChatRequest(SamplingFields, ConversationFields):
    messages: Messages
    max_completion_tokens: Int | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Int | None = None


def _no_choice(value: Any) -> bool:
    """The older spelling, with `functions`, which are refused."""
    return value in (None, "none", "auto") if isinstance(value, str | None) else False


CHAT_REFUSALS: Refusals = {
    **COMMON_REFUSALS,
    "functions": inert(None),
    "function_call": _no_choice,
    "modalities": inert(None, ["text"]),
    "audio": inert(None),
    "prediction": inert(None),
    "moderation": inert(None),
    "web_search_options": inert(None),
}


class ChatBatchRequest(SamplingFields, ConversationFields):
    """`messages` holds whole conversations."""

    messages: Annotated[list[Messages], Field(min_length=1)]
    max_completion_tokens: Int | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    include_reasoning: bool | None = None
    thinking_token_budget: Int | None = None

    def requests(self) -> list[ChatRequest]:
        """One a conversation, each with all of the settings."""
        shared = {name: getattr(self, name) for name in self.model_fields_set}
        return [ChatRequest.model_construct(**shared | {"messages": messages}) for messages in self.messages]


#: What a batch cannot have: one choice each, and no stream.
BATCH_REFUSALS: Refusals = {
    **CHAT_REFUSALS,
    "stream": inert(None, False),
    "n": inert(None, 1),
    "best_of": inert(None, 1),
    "use_beam_search": inert(None, False),
    "tools": inert(None),
    "tool_choice": inert(None, "none"),
    "prompt_logprobs": inert(None),
    "return_token_ids": inert(None, False),
    "include_metrics": inert(None, False),
}


# ---------------------------------------------------------------- replies
class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None


class ContentLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ContentLogprob]


class ReplyMessage(msgspec.Struct):
    role: str
    content: str | None
    refusal: str | None = None
    # The thinking under both names that clients read (U19); absent when the server does not look for thinking.
    reasoning: str | None | UnsetType = UNSET
    reasoning_content: str | None | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] | UnsetType = UNSET  # with return_token_ids


class ChatReply(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | UnsetType = UNSET  # with return_token_ids
    metrics: RequestMetrics | UnsetType = UNSET  # with include_metrics


class Delta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET  # with return_token_ids


class ChatChunk(msgspec.Struct):
    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # in the first chunk, with return_token_ids
    metrics: RequestMetrics | UnsetType = UNSET  # in the last chunk, with include_metrics
    prompt_progress: Progress | UnsetType = UNSET  # with return_progress
