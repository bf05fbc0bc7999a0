"""Bodies and replies of llama.cpp's native API."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from octavo.server.openai.protocol.common import Progress, Refusals, Stop, inert
from octavo.server.openai.protocol.model import Int, WireModel
from octavo.server.openai.protocol.samplers import RepetitionFields, SamplerFields

MAX_EXTRA = 256


class NativeFields(SamplerFields):
    """What /completion and /infill share. A field that is left out has the server's default."""

    model: str | None = None
    n_predict: Int | None = None  # -1: as many as fit
    stream: bool | None = None
    temperature: float | None = None
    top_k: Int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Int | None = None
    stop: Stop = Field(default_factory=list)
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: list[Annotated[list[Int | float | str | bool], Field(min_length=2, max_length=2)]] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None
    json_schema: Any = None
    n_probs: Int | None = None
    cache_prompt: bool | None = None  # false: its prompt shares nothing with others
    return_tokens: bool | None = None
    return_progress: bool | None = None  # of the prompt, in a stream
    repetition_detection: RepetitionFields | None = None


class NativeCompletionRequest(NativeFields):
    #: A text, token ids, texts and ids mixed, or a list of such prompts.
    prompt: str | list[Any]


class ExtraContext(WireModel):
    """Another file of the project, whole or in part."""

    text: str
    filename: str | None = None


class InfillRequest(NativeFields):
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[ExtraContext] | None, Field(max_length=MAX_EXTRA)] = None
    prompt: str | None = None  # the beginning of what stands between the two


NATIVE_REFUSALS: Final[Refusals] = {
    "id_slot": inert(None, -1),
    "lora": inert(None, []),
    "min_keep": inert(None, 0),
    "n_cmpl": inert(None, 1),
    "n_indent": inert(None, 0),
    "post_sampling_probs": inert(None, False),
    "response_fields": inert(None, []),
    "samplers": inert(None),  # their order is fixed: docs/sampling.md
    "t_max_predict_ms": inert(None, 0, -1),
    "timings_per_token": inert(None, False),
}


class TokenProbability(msgspec.Struct):
    id: int
    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TokenProbability] | UnsetType = UNSET


class Timings(msgspec.Struct):
    cache_n: int  # prompt tokens found in the prefix cache
    prompt_n: int  # those that were computed
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class CompletionPiece(msgspec.Struct, kw_only=True):
    """An event of a stream before the last."""

    index: int
    content: str
    tokens: list[int]
    stop: bool = False
    id_slot: int = -1  # no request has one that it could name again
    tokens_predicted: int
    tokens_evaluated: int
    completion_probabilities: list[TokenProbability] | UnsetType = UNSET
    prompt_progress: Progress | UnsetType = UNSET


class CompletionEnd(CompletionPiece, kw_only=True):
    """The whole reply, and the last event of a stream, whose text was in those before."""

    model: str
    generation_settings: dict[str, Any]
    prompt: str
    has_new_line: bool
    truncated: bool = False  # what does not fit the context is refused
    stop_type: str  # "eos", "word", "limit", or "repetition"
    stopping_word: str
    tokens_cached: int  # of the sequence: prompt and reply
    timings: Timings


class PropsReply(msgspec.Struct):
    """`default_generation_settings`: the context's length, and the model's defaults of sampling."""

    default_generation_settings: dict[str, Any]
    total_slots: int
    model_path: str  # the name under which the model is served
    modalities: dict[str, bool]
    build_info: str
    is_sleeping: bool


class NextToken(msgspec.Struct):
    has_next_token: bool
    n_remain: int  # -1: as many as fit
    n_decoded: int


class Slot(msgspec.Struct):
    """One of the sequences that can run at once; what runs in it, where something does. `id`: its place in the list,
    which may change while it runs; `id_task` does not."""

    id: int
    n_ctx: int
    speculative: bool = False  # no model drafts for another
    is_processing: bool = False
    id_task: int | UnsetType = UNSET
    n_prompt_tokens: int | UnsetType = UNSET
    n_prompt_tokens_cache: int | UnsetType = UNSET
    params: dict[str, Any] | UnsetType = UNSET
    next_token: list[NextToken] | UnsetType = UNSET
