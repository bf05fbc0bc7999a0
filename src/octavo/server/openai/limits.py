"""Bounds of one request that are settings of the server, each with its error, and fields that exclude each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest
from octavo.base.params import MAX_LENGTH_PENALTY, BeamParams
from octavo.base.ranges import RANGES, Range
from octavo.served.checks import MAX_BAD_WORD_CHARS, MAX_CACHE_SALT_CHARS, MAX_STOP_CHARS
from octavo.server.http.exchange import BodyLimits
from octavo.server.openai.protocol.common import MAX_REQUEST_ID_CHARS, SamplingFields, check_progress
from octavo.wire.messages import EngineInfo


def body_limits(config: ServerConfig) -> BodyLimits:
    return BodyLimits(config.max_body_bytes, config.max_json_depth)


def check_stream_fields(request: SamplingFields) -> None:
    """Raise `InvalidRequest` for what goes with streams only, or with whole replies only."""
    if request.stream_interval is not None:
        if not request.stream:
            raise InvalidRequest("`stream_interval` can only be set when `stream=True`.", "stream_interval")
        if request.stream_interval < 1:
            raise InvalidRequest("`stream_interval` must be at least 1.", "stream_interval")
    if request.return_progress:
        check_progress(is_streamed=bool(request.stream))
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("Stream options can only be defined when `stream=True`.", "stream_options")
    if request.stream and request.prompt_logprobs is not None:
        raise InvalidRequest("`prompt_logprobs` are not available when `stream=True`.", "prompt_logprobs")


def beam_params(request: SamplingFields) -> BeamParams | None:
    """The beams of a request with `use_beam_search`, else None; `BeamParams.check` is still to be called.

    Raises `InvalidRequest` when a request without beams sets `length_penalty` or `early_stopping`.
    """
    penalty = 1.0 if request.length_penalty is None else request.length_penalty
    n = request.n or 1
    if request.use_beam_search:
        return BeamParams(
            width=n if request.best_of is None else request.best_of,
            length_penalty=penalty,
            early_stopping=request.early_stopping or False,
        )
    if penalty != 1.0:
        raise InvalidRequest("`length_penalty` must be 1 unless `use_beam_search` is true.", "length_penalty")
    if request.early_stopping:
        raise InvalidRequest("`early_stopping` must be false unless `use_beam_search` is true.", "early_stopping")
    return None


# ---------------------------------------------------------------- the bounds in the API's description
def json_bounds(config: ServerConfig, info: EngineInfo) -> dict[str, dict[str, Any]]:
    """Field name -> the JSON Schema keywords that bound its values.

    A body with a value outside of them is refused, unless another field overrides that one.
    """
    ranges = {
        **RANGES,
        "n": Range(1, config.max_n),
        "best_of": Range(1, config.max_n),
        "length_penalty": Range(-MAX_LENGTH_PENALTY, MAX_LENGTH_PENALTY),
        "stream_interval": Range(1),
        "truncate_prompt_tokens": Range(-1, info.max_model_len),
        "max_completion_tokens": RANGES["max_tokens"],
        "max_output_tokens": RANGES["max_tokens"],
    }
    most = Range(0, min(config.max_logprobs, info.vocab_size))
    if config.max_logprobs == -1:
        most = Range(-1, info.vocab_size)
    ranges |= dict.fromkeys(("logprobs", "top_logprobs", "prompt_logprobs"), most)
    bounds = {name: _keywords(bound) for name, bound in ranges.items()}
    token_id = {"minimum": 0, "maximum": info.vocab_size - 1}
    return bounds | {
        "stop": {
            "minLength": 1,
            "maxLength": MAX_STOP_CHARS,
            "maxItems": config.max_stop_strings,
            "items": {"minLength": 1, "maxLength": MAX_STOP_CHARS},
        },
        "stop_token_ids": {"items": token_id},
        "allowed_token_ids": {"items": token_id, "minItems": 1},
        "logprob_token_ids": {"items": token_id},
        "tokens": {"items": token_id},
        "logit_bias": {"maxProperties": config.max_logit_bias, "propertyNames": {"pattern": "^[0-9]{1,10}$"}},
        "bad_words": {"items": {"minLength": 1, "maxLength": MAX_BAD_WORD_CHARS}},
        "cache_salt": {"maxLength": MAX_CACHE_SALT_CHARS},
        "request_id": {"minLength": 1, "maxLength": MAX_REQUEST_ID_CHARS, "pattern": "^[!-~]+$"},
        "prompt": {"minItems": 1},
    }


def _keywords(bounds: Range) -> dict[str, Any]:
    return {name: value for name, value in zip(("minimum", "maximum"), bounds, strict=True) if value is not None}


_KEYWORDS_OF = {
    "number": ("minimum", "maximum"),
    "integer": ("minimum", "maximum"),
    "string": ("minLength", "maxLength", "pattern"),
    "array": ("minItems", "maxItems", "items"),
    "object": ("maxProperties", "propertyNames"),
}


def add_bounds(schema: dict[str, Any], bounds: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `json_bounds` into the schema of a body, in place: each keyword beside the type that it applies to."""
    for name, prop in schema.get("properties", {}).items():
        for branch in prop.get("anyOf", [prop]):
            for keyword in _KEYWORDS_OF.get(branch.get("type", ""), ()):
                value = bounds.get(name, {}).get(keyword)
                if value is not None:
                    branch[keyword] = branch["items"] | value if keyword == "items" else value
