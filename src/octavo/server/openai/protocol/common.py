"""What the request and reply bodies of several endpoints share.

Incoming fields are strict: `true` is no integer, `"1"` is no number, integers fit 64 bits. `null` means the
default everywhere. Three kinds of fields:

- fields of a model here: validated and honoured;
- fields in an endpoint's `Refusals`: known, not supported, an error when they ask for something;
- `SILENT_FIELDS` (the caller's own bookkeeping): accepted without a word. Anything else, at any depth, is accepted,
  ignored, and named in the reply's `x-octavo-ignored-fields` header.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from octavo.base.errors import InvalidRequest
from octavo.base.params import MAX_BAD_WORDS, MAX_LOGPROB_TOKEN_IDS, SamplingParams
from octavo.served import events
from octavo.served.checks import MAX_STOP_CHARS
from octavo.server.openai.protocol.model import Int as Int
from octavo.server.openai.protocol.model import WireModel as WireModel
from octavo.server.openai.protocol.samplers import RepetitionFields, SamplerFields

MAX_REQUEST_ID_CHARS = 128

#: Fields that carry the caller's own bookkeeping and have no effect on the answer.
SILENT_FIELDS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})


class StreamOptions(WireModel):
    """What a stream tells of its usage: nothing unless the request asks for it."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


def _check_stop(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or not all(isinstance(s, str) for s in stops):
        raise PydanticCustomError("stop_type", "Input should be a string or a list of strings")
    if any(len(s) > MAX_STOP_CHARS for s in stops):
        raise PydanticCustomError("stop_too_long", f"A stop string has at most {MAX_STOP_CHARS} characters")
    return stops


_TOKEN_ID_KEY = re.compile(r"-?[0-9]{1,10}")


def _check_logit_bias(value: Any) -> Any:
    """Keys are token ids in decimal; whether they are in the vocabulary is checked with the parameters."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias_type", "Input should be an object of token ids and biases")
    if not all(_TOKEN_ID_KEY.fullmatch(key) for key in value):
        raise PydanticCustomError("logit_bias_key", "Keys should be token ids")
    return {int(key): bias for key, bias in value.items()}


def is_request_id(value: str) -> bool:
    """Short, and printable ASCII without spaces: safe in a header, a log line and an id."""
    return 0 < len(value) <= MAX_REQUEST_ID_CHARS and all("!" <= char <= "~" for char in value)


def check_request_id(value: str | None) -> str | None:
    if value is not None and not is_request_id(value):
        raise PydanticCustomError(
            "request_id", f"A request id has 1 to {MAX_REQUEST_ID_CHARS} printable ASCII characters and no spaces"
        )
    return value


LogitBias = Annotated[
    dict[int, float] | None, BeforeValidator(_check_logit_bias, json_schema_input_type=dict[str, float] | None)
]
Stop = Annotated[list[str], BeforeValidator(_check_stop, json_schema_input_type=str | list[str] | None)]


class SamplingFields(SamplerFields):
    """The fields that chat and text completions share."""

    model: str | None = None
    n: Int | None = None
    best_of: Int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    seed: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    repetition_detection: RepetitionFields | None = None
    logit_bias: LogitBias = None
    stop: Stop = Field(default_factory=list)
    stop_token_ids: list[Int] | None = None
    allowed_token_ids: list[Int] | None = None
    bad_words: Annotated[list[str] | None, Field(max_length=MAX_BAD_WORDS)] = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    max_tokens: Int | None = None
    min_tokens: Int | None = None
    skip_special_tokens: bool | None = None
    # Without effect (S25): it concerns "slow" tokenizers, which write a space between added tokens that stand side by
    # side; octavo reads `tokenizer.json` only, whose decoders decide that themselves.
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: Int | None = None
    truncation_side: Literal["left", "right"] | None = None  # which end is cut off; default: left
    echo: bool | None = None
    logprob_token_ids: Annotated[list[Int] | None, Field(max_length=MAX_LOGPROB_TOKEN_IDS)] = None
    prompt_logprobs: Int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stream_interval: Int | None = None
    return_progress: bool | None = None  # a stream tells how much of the prompt is computed
    add_special_tokens: bool | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    return_token_ids: bool | None = None
    include_metrics: bool | None = None  # the times of the request in its reply; default: as the server says
    return_tokens_as_token_ids: bool | None = None
    request_id: Annotated[str | None, AfterValidator(check_request_id)] = None
    cache_salt: str | None = None
    priority: Int | None = None
    # What the output must be: checked in `text.grammars.grammar`, which reads them from the body.
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_decoding_backend: Any = None
    guided_whitespace_pattern: Any = None

    def sampling_values(self) -> dict[str, Any]:
        """The values that the body gives for fields of `SamplingParams`, by field name."""
        values = {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        values["stop"] = tuple(self.stop)
        values["stop_token_ids"] = tuple(self.stop_token_ids or ())
        if self.allowed_token_ids is not None:
            values["allowed_token_ids"] = tuple(self.allowed_token_ids)
        if self.logprob_token_ids:
            values["logprob_token_ids"] = tuple(self.logprob_token_ids)
        if self.repetition_detection is not None:
            values["repetition_detection"] = self.repetition_detection.detection()
        return values | self.sampler_values()

    def turn_values(self) -> dict[str, Any]:
        """The values that the body gives for the other fields of a `Turn`, by field name."""
        return {
            "bad_words": self.bad_words or (),
            "truncate": self.truncate_prompt_tokens,
            "truncate_right": self.truncation_side == "right",
            "priority": self.priority or 0,
            "cache_salt": self.cache_salt or "",
            "is_whole": not self.stream,
        }

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)


_CONVERTED = (
    *("stop", "stop_token_ids", "allowed_token_ids", "structured_outputs", "logprob_token_ids"),
    *("repetition_detection", *SamplerFields.model_fields),
)
#: Fields that go to `SamplingParams` under their own name, and need no conversion.
_SAMPLING_FIELDS = tuple(
    name for name in SamplingFields.model_fields if name in SamplingParams.__struct_fields__ and name not in _CONVERTED
)

#: Field -> does this value ask for nothing? Values that ask for something are refused, never ignored.
Refusals = Mapping[str, Callable[[Any], bool]]


def inert(*values: Any) -> Callable[[Any], bool]:
    """A test for values that ask for nothing. Compared with their type: `false` is not `0`."""

    def test(value: Any) -> bool:
        return any(type(value) is type(harmless) and value == harmless for harmless in values)

    return test


#: What neither chat nor text completions support.
COMMON_REFUSALS: Refusals = {
    # Other servers' names of constraints: to ignore them would drop the constraint.
    "grammar": inert(None),
    "json_schema": inert(None),
    "regex": inert(None),
    "ebnf": inert(None),
    "logits_processors": inert(None, []),
}


def refuse_unsupported(body: Mapping[str, Any], refusals: Refusals) -> None:
    """Raise `InvalidRequest` for the first field of `body` that asks for what is not supported."""
    for name, harmless in refusals.items():
        if name in body and not harmless(body[name]):
            raise InvalidRequest(f"`{name}` is not currently supported.", name)


def ignored_fields(body: Mapping[str, Any], model: type[WireModel], refusals: Refusals) -> list[str]:
    """Names in `body` that no field and no refusal has, sorted. The reply names them (U20)."""
    known = model.model_fields.keys() | refusals.keys() | SILENT_FIELDS
    return sorted(body.keys() - known)


def ignored_below(body: Mapping[str, Any], request: WireModel) -> list[str]:
    """The same of the objects in `body`, validated as `request`: paths without the places in lists, sorted.

    Null asks for nothing: clients send back what replies have with all the fields that their own types know.
    """
    found: set[str] = set()
    for name, key in _wire_names(type(request)):
        found.update(_unknown(body.get(name), getattr(request, key), name))
    return sorted(found)


def _unknown(given: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list) and isinstance(given, list):
        for one, checked in zip(given, value, strict=False):
            yield from _unknown(one, checked, path)
    elif isinstance(value, WireModel) and isinstance(given, dict):
        names = _wire_names(type(value))
        if value.model_config.get("extra") != "allow":
            unknown = given.keys() - {name for name, _ in names}
            yield from (f"{path}.{name}" for name in unknown if given[name] is not None)
        for name, key in names:
            if name in given:
                yield from _unknown(given[name], getattr(value, key), f"{path}.{name}")


@cache
def _wire_names(model: type[WireModel]) -> tuple[tuple[str, str], ...]:
    """The names of a model's fields in JSON, and as attributes."""
    return tuple((field.alias or name, name) for name, field in model.model_fields.items())


class PromptLogprob(msgspec.Struct):
    """One token at one place of the prompt. `rank` 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0
    image_tokens: int | UnsetType = UNSET  # of prompts with images, or with frames and pages
    audio_tokens: int | UnsetType = UNSET


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts, summed over all prompts and choices."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET  # on servers that separate the reasoning


def usage_of(counts: events.Usage, *, num_output_tokens: int | None = None) -> Usage:
    """`num_output_tokens` replaces the count of generated tokens when the reply returns fewer."""
    num_output = counts.num_output_tokens if num_output_tokens is None else num_output_tokens
    num_prompt, num_reasoning = counts.num_prompt_tokens, counts.num_reasoning_tokens
    details = UNSET if num_reasoning is None else CompletionTokensDetails(num_reasoning)
    media = counts.num_media_tokens
    of_prompt = PromptTokensDetails(counts.num_cached_tokens, media.get("image", UNSET), media.get("audio", UNSET))
    return Usage(num_prompt, num_prompt + num_output, num_output, of_prompt, details)


class Progress(msgspec.Struct):
    """How much of a prompt is computed, in tokens; `processed` has those of the prefix cache, too."""

    total: int
    cache: int
    processed: int
    time_ms: float  # since it began


def progress_of(news: events.News) -> Progress | UnsetType:
    done = news.progress
    if done is None:
        return UNSET
    return Progress(news.num_prompt_tokens, done.num_cached, done.num_tokens, round(1000 * done.seconds, 3))


def check_progress(*, is_streamed: bool) -> None:
    """Raise `InvalidRequest` unless there is a stream that could tell of the prompt's progress."""
    if not is_streamed:
        raise InvalidRequest("`return_progress` can only be set when `stream=True`.", "return_progress")


class RequestMetrics(msgspec.Struct):
    """Times of a request in milliseconds, over all its prompts and choices; null for what did not happen."""

    queue_time_ms: float | None  # from its arrival until the engine began with it
    prefill_time_ms: float | None  # from there to the first token
    time_to_first_token_ms: float | None  # from its arrival
    generation_time_ms: float | None  # from the first token to the last
    total_time_ms: float | None  # from its arrival to its end
    mean_itl_ms: float | None  # between two tokens of one choice
    prompt_tokens_per_second: float | None  # of the prompt, without what was cached
    tokens_per_second: float | None  # of all choices, behind their first tokens
    cached_tokens: int  # prompt tokens found in the prefix cache


def metrics_of(counts: events.Usage, num_choices: int) -> RequestMetrics | UnsetType:
    """The times of a reply that is at its end; `num_choices` of all its prompts."""
    times = counts.times
    if times is None:
        return UNSET
    num_later = counts.num_output_tokens - num_choices  # tokens behind the first of each choice
    decode, prefill = times.decode_seconds, times.prefill_seconds
    num_computed = counts.num_prompt_tokens - counts.num_cached_tokens
    return RequestMetrics(
        _millis(times.queue_seconds),
        _millis(prefill),
        _millis(times.first_token_seconds),
        _millis(decode),
        _millis(times.total_seconds),
        _millis(decode / num_later) if decode and num_later > 0 and num_choices == 1 else None,
        round(num_computed / prefill, 2) if prefill else None,
        round(num_later / decode, 2) if decode and num_later > 0 else None,
        counts.num_cached_tokens,
    )


def _millis(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
