"""POST /v1/completions: request and reply bodies."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import PlainValidator
from pydantic_core import PydanticCustomError

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

#: As in OpenAI's API, when a request does not give `max_tokens` (S16).
DEFAULT_MAX_TOKENS = 16

Prompts = list[str] | list[list[int]]


def _is_ids(value: list[Any]) -> bool:
    # `type(x) is int` and not isinstance: true and false are no token ids.
    return bool(value) and all(type(x) is int for x in value)


def _check_prompt(value: Any) -> Prompts:
    """The four shapes of `prompt` as a list of prompts, all text or all token ids.

    Written by hand: a union of four list types makes pydantic go over 32k token ids four times.
    """
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list):
        raise PydanticCustomError("prompt_type", "Input should be a string, token ids, or a list of either")
    if not value:
        raise PydanticCustomError("prompt_empty", "Input should not be an empty list")
    if all(isinstance(item, str) for item in value):
        return value
    if _is_ids(value):
        return [value]
    if all(isinstance(item, list) and _is_ids(item) for item in value):
        return value
    raise PydanticCustomError(
        "prompt_mixed", "Input should be a string, a list of strings, a list of token ids, or a list of such lists"
    )


class CompletionRequest(SamplingFields):
    prompt: Annotated[
        Prompts, PlainValidator(_check_prompt, json_schema_input_type=str | list[str] | list[int] | list[list[int]])
    ]
    logprobs: Int | None = None
    suffix: str | None = None

    @property
    def scores_only(self) -> bool:
        """Whether the prompt is echoed and scored, and nothing is generated (S16, S20)."""
        return bool(self.echo) and self.max_tokens == 0


COMPLETION_REFUSALS: Refusals = {
    **COMMON_REFUSALS,
    "prompt_embeds": inert(None),
    "tools": inert(None),
    "tool_choice": inert(None, "none"),
}


# ---------------------------------------------------------------- replies
class CompletionLogprobs(msgspec.Struct):
    """Four lists of one entry a token; the entry is null where an echoed prompt begins."""

    text_offset: list[int] = []
    token_logprobs: list[float | None] = []
    tokens: list[str] = []
    top_logprobs: list[dict[str, float] | None] = []


class CompletionChoice(msgspec.Struct):
    """A choice of a whole reply or of a chunk; the first five fields are always present."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None | UnsetType = UNSET  # of the whole reply
    # With return_token_ids; the prompt's stand in the first chunk of a choice.
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class CompletionReply(msgspec.Struct):
    """The whole reply, and a chunk of the stream: the same object."""

    id: str
    object: str
    created: int
    model: str
    choices: list[CompletionChoice]
    system_fingerprint: str
    usage: Usage | None | UnsetType = UNSET
    metrics: RequestMetrics | UnsetType = UNSET  # at the end, with include_metrics
    prompt_progress: Progress | UnsetType = UNSET  # of a stream, with return_progress
