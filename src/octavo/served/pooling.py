"""Vectors of texts, values of their classes, scores of pairs: from what a caller wants to requests, and results."""

from __future__ import annotations

import math
import re
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import mul
from typing import TYPE_CHECKING, Final

import msgspec

from octavo.base.errors import InvalidRequest
from octavo.base.params import GenerateRequest, PoolingParams, SamplingParams
from octavo.base.ranges import clip_number
from octavo.client.admission import check_text
from octavo.served.parts import DeltaStream
from octavo.served.prompts import Prompt
from octavo.served.request_log import log_request
from octavo.served.turn import Continuation, Conversation
from octavo.wire.messages import PoolingInfo

if TYPE_CHECKING:
    from octavo.served.model import ServedModel

#: Values of a result for each token, at most: a result is one frame between the processes.
_MAX_VALUES: Final = 32_000_000
#: In a template of pairs the two texts; and what it begins with.
_PLACES: Final = re.compile(r"(\{query\}|\{document\})")
_BEGUN: Final = "<|im_start|>"
#: What a request of vectors goes through the engine with. Nothing is sampled.
_NO_SAMPLING: Final = SamplingParams(temperature=0.0, max_tokens=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two texts that are looked at as one."""

    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsTurn:
    """Texts of which vectors are wanted, one for each, in their order."""

    request_id: str
    texts: Sequence[Continuation | Conversation | Pair]
    param: str = "input"  # the field that holds them; several have a number behind it
    wanted: PoolingParams = PoolingParams()
    truncate: int | None = None  # tokens of a text to keep, those in front; -1: as many as the model takes
    is_ready_to_cut: bool = False  # texts that are too long are cut, though nothing was said
    priority: int = 0
    cache_salt: str = ""
    trace_headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PooledText:
    """`values`: float32, little-endian: a vector, or with the kind `all` one for each token."""

    values: bytes
    num_tokens: int
    num_cached_tokens: int = 0

    def floats(self) -> list[float]:
        return array("f", self.values).tolist()

    def rows(self, width: int) -> list[list[float]]:
        values = self.floats()
        return [values[at : at + width] for at in range(0, len(values), width)]


def refusal_of_text(info: PoolingInfo) -> str:
    """Why a model that gives vectors writes no text."""
    routes = "/classify, /score or /rerank" if info.classes else "/v1/embeddings"
    return f"This model gives {'classes' if info.classes else 'embeddings'} and generates no text: use {routes}."


def pooling_info(model: ServedModel, what: str = "Embeddings") -> PoolingInfo:
    """Raises `InvalidRequest` for a model that generates."""
    if model.info.pooling is None:
        raise InvalidRequest(
            f"The model does not support the {what} API: it is served to generate text. `--task embed` serves its "
            "vectors.",
            "model",
        )
    return model.info.pooling


async def pool(model: ServedModel, turn: TextsTurn) -> list[PooledText]:
    """The results of all texts, in their order. All are admitted before the first is computed, or none is.

    Raises `RequestError` naming the field, or `ServerError`.
    """
    info = pooling_info(model)
    await model.adapter_ready()
    _check_wanted(model, info, turn)
    requests = await _requests(model, turn)
    for request in requests:
        model.engine.check_servable(request)
    streams = []
    try:
        for request in requests:
            streams.append(model.engine.generate(request))  # noqa: PERF401  (those before a refusal are closed)
        # One by one: all are wanted, and what comes early waits in its stream.
        results = [await _only(stream) for stream in streams]
        assert None not in results, "the engine ended a request without its vector"
        return [result for result in results if result is not None]
    finally:
        for stream in streams:
            await stream.aclose()


async def _only(stream: DeltaStream) -> PooledText | None:
    result = None
    async for delta in stream:
        if delta.pooled is not None:
            result = PooledText(delta.pooled, delta.num_prompt_tokens, delta.num_cached_tokens)
    return result


def _check_wanted(model: ServedModel, info: PoolingInfo, turn: TextsTurn) -> None:
    if len(turn.texts) > model.max_fanout:
        raise InvalidRequest(f"At most {model.max_fanout} texts are allowed in one request.", turn.param)
    truncate, limit = turn.truncate, model.info.max_model_len
    if truncate is not None and not (truncate == -1 or 1 <= truncate <= limit):
        raise InvalidRequest(
            f"`truncate_prompt_tokens` must be -1 or in [1, {limit}], got {clip_number(truncate)}.",
            "truncate_prompt_tokens",
        )
    dimensions = turn.wanted.dimensions
    if dimensions is None:
        return
    if info.classes or not info.may_be_cut:
        raise InvalidRequest(
            "The model does not support `dimensions`: its vectors cannot be cut. `--hf-overrides "
            "'{\"is_matryoshka\": true}'` says of a model that they can.",
            "dimensions",
        )
    if info.dimensions and dimensions not in info.dimensions:
        allowed = ", ".join(map(str, info.dimensions))
        raise InvalidRequest(f"`dimensions` must be one of {allowed}, got {clip_number(dimensions)}.", "dimensions")
    if not 1 <= dimensions <= info.dimension:
        raise InvalidRequest(
            f"`dimensions` must be in [1, {info.dimension}], got {clip_number(dimensions)}.", "dimensions"
        )


async def _requests(model: ServedModel, turn: TextsTurn) -> list[GenerateRequest]:
    pairs = [text for text in turn.texts if isinstance(text, Pair)]
    others = [text for text in turn.texts if not isinstance(text, Pair)]
    assert not pairs or not others, "texts are pairs, or none is"
    if pairs:
        encode = partial(_joined, model)
        both = [(pair.first, pair.second) for pair in pairs]
        paired = await model.prompts.paired(both, encode, turn.param)
        made = [Prompt(ids, None, turn.param) for ids, _ in paired]
        seconds = [second for _, second in paired]
    else:
        made = await model.prompts.made(others, turn.param, turn.cache_salt)
        seconds = [0] * len(made)
    # What stands behind a text stays there when it is cut.
    template = model.renderer.render_text(_behind(model) if pairs else "", True)
    requests = []
    for place, (prompt, second) in enumerate(zip(made, seconds, strict=True)):
        request_id = turn.request_id if len(made) == 1 else f"{turn.request_id}-{place}"
        ids, text = _cut(prompt.ids, turn, template, model.info.max_model_len), prompt.text
        if ids is not prompt.ids:
            text = None
            if prompt.media or (second and second >= len(ids)):
                raise InvalidRequest("A text with media, or the first text of a pair, cannot be cut.", turn.param)
        check_text(ids, model.info, prompt.param)
        wanted = msgspec.structs.replace(turn.wanted, second_from=second)
        _check_size(model, wanted, len(ids), prompt.param)
        if not model.config.disable_log_requests:
            log_request(request_id, ids, text, _NO_SAMPLING, model.config.max_log_len, prompt.media)
        requests.append(
            GenerateRequest(
                external_id=request_id,
                turn_id=turn.request_id,
                prompt_token_ids=ids,
                params=_NO_SAMPLING,
                pooling=wanted,
                priority=turn.priority,
                cache_salt=turn.cache_salt,
                arrival_time=time.monotonic(),
                is_whole=True,
                trace_headers=turn.trace_headers,
                media=prompt.media,
                **model.adapter_fields,
            )
        )
    return requests


def _joined(model: ServedModel, first: str, second: str) -> tuple[list[int], int]:
    """Two texts as one, and where the second begins; 0: nothing knows of it. As the tokenizer joins them, or as they
    stand in the model's template, unless the first is the beginning of one already."""
    template = model.info.pooling.pair_template if model.info.pooling is not None else ""
    if not template:
        return model.tokenizer.encode_pair(first, second)
    if first.startswith(_BEGUN):
        return model.renderer.render_text(first + second, True), 0
    parts = _PLACES.split(template)
    texts = {"{query}": first, "{document}": second}
    return model.renderer.render_text("".join(texts.get(part, part) for part in parts), True), 0


def _behind(model: ServedModel) -> str:
    """Of the template of pairs, if there is one, what stands behind the texts."""
    template = model.info.pooling.pair_template if model.info.pooling is not None else ""
    return _PLACES.split(template)[-1]


def _check_size(model: ServedModel, wanted: PoolingParams, num_tokens: int, param: str) -> None:
    info = model.info.pooling
    assert info is not None
    if (wanted.kind or info.kind) == "all" and num_tokens * info.hidden_size > _MAX_VALUES:
        most = _MAX_VALUES // info.hidden_size
        raise InvalidRequest(f"At most {most} tokens of a text can have a vector each, and it has {num_tokens}.", param)


def _cut(ids: list[int], turn: TextsTurn, template: list[int], limit: int) -> list[int]:
    """The first tokens, and behind them what the tokenizer puts behind a text."""
    most = turn.truncate
    if most is None:
        most = limit if turn.is_ready_to_cut else len(ids)
    most = limit if most == -1 else most
    if len(ids) <= most:
        return ids
    num_last = 0
    while num_last < min(len(template), most) and template[-1 - num_last] == ids[-1 - num_last]:
        num_last += 1
    return ids[: most - num_last] + ids[len(ids) - num_last :]


# ------------------------------------------------------------ scores of pairs
@dataclass(frozen=True, slots=True)
class Scores:
    values: list[float]
    num_tokens: int


async def score(model: ServedModel, turn: TextsTurn, pairs: Sequence[tuple[str, str]]) -> Scores:
    """How well the texts of each pair fit. A model with one class reads both as one; of others it is the cosine of
    the angle between their vectors. `turn`: without texts.

    Raises `RequestError` naming the field, or `ServerError`.
    """
    info = pooling_info(model, "Score")
    if info.classes and not info.reads_pairs:
        raise InvalidRequest(
            f"The model has {len(info.labels)} classes and gives no scores of pairs: use /classify.", "model"
        )
    if info.reads_pairs:
        texts = [Pair(first=first, second=second) for first, second in pairs]
        found = await pool(model, _with(turn, texts, PoolingParams(activation=turn.wanted.activation)))
        return Scores([result.floats()[0] for result in found], sum(result.num_tokens for result in found))
    # Each text once, whatever the number of pairs it stands in.
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
    results = await pool(model, _with(turn, [Continuation(prompt=text) for text in distinct], PoolingParams()))
    vectors = {text: result.floats() for text, result in zip(distinct, results, strict=True)}
    values = [cosine(vectors[first], vectors[second]) for first, second in pairs]
    return Scores(values, sum(result.num_tokens for result in results))


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the angle between two vectors; 0 where one has no length."""
    lengths = math.sqrt(_product(first, first) * _product(second, second))
    return _product(first, second) / lengths if lengths else 0.0


def _product(first: Sequence[float], second: Sequence[float]) -> float:
    return math.fsum(map(mul, first, second))


def _with(turn: TextsTurn, texts: Sequence[Continuation | Pair], wanted: PoolingParams) -> TextsTurn:
    return replace(turn, texts=texts, wanted=wanted)
