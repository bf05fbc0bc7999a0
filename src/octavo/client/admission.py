"""Which requests the engine may see: those that it can serve, as many as may wait."""

from __future__ import annotations

import math

import msgspec

from octavo.base.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from octavo.base.params import GenerateRequest, SamplingParams
from octavo.base.ranges import clip_number
from octavo.wire.messages import EngineInfo

#: Most seconds after which a refused caller is told to come back.
MAX_RETRY_AFTER = 60
#: Most log probabilities of a prompt: what a step computes of them must fit one frame between the processes.
MAX_PROMPT_SCORES = 4_000_000


def sized(
    params: SamplingParams,
    num_prompt: int,
    info: EngineInfo,
    param: str = "prompt",
    default_max_tokens: int | None = None,
) -> SamplingParams:
    """`params` with `max_tokens` set for a prompt of that length. Decides whether it fits the context (E8).

    `param` is the field that holds the prompt; an error names the field that is too large. `default_max_tokens` bounds
    the reply where `params` do not, and never makes a request too long. Raises `InvalidRequest` or
    `ContextLengthExceeded`.
    """
    if num_prompt == 0:
        raise InvalidRequest("Prompt cannot be empty.", param)
    limit, what = info.max_model_len, "the model's context"
    if info.max_request_tokens < limit:
        limit, what = info.max_request_tokens, "the KV cache"
    wanted = params.max_tokens
    room = limit - num_prompt
    if room < 1:
        raise ContextLengthExceeded(
            f"At most {limit} tokens fit {what}, one of them generated, but the prompt has {num_prompt}.", param
        )
    if wanted is not None and wanted > room:
        raise ContextLengthExceeded(
            f"At most {limit} tokens fit {what}: the prompt has {num_prompt}, which leaves {room}, but "
            f"`max_tokens` is {clip_number(wanted)}.",
            "max_tokens",
        )
    if params.min_tokens > room:
        raise ContextLengthExceeded(
            f"At most {limit} tokens fit {what}: the prompt has {num_prompt}, which leaves {room}, but `min_tokens` "
            f"is {clip_number(params.min_tokens)}.",
            "min_tokens",
        )
    if wanted is not None:
        return params
    most = room if default_max_tokens is None else max(default_max_tokens, params.min_tokens)
    return msgspec.structs.replace(params, max_tokens=min(room, most))


def check_text(ids: list[int], info: EngineInfo, param: str = "input") -> None:
    """A text of which a vector is wanted: no token is generated behind it. `param`: the field that holds it.

    Raises `InvalidRequest` or `ContextLengthExceeded`.
    """
    limit = min(info.max_model_len, info.max_request_tokens)
    if not ids:
        raise InvalidRequest("The text has no tokens.", param)
    if len(ids) > limit:
        raise ContextLengthExceeded(
            f"At most {limit} tokens fit the model, but the text has {len(ids)}; `truncate_prompt_tokens` cuts it.",
            param,
        )


def check_encoder_input(ids: list[int], info: EngineInfo, param: str = "prompt") -> None:
    """The input of the model's encoder, which callers call the prompt: `param` is the field that holds it.

    Raises `InvalidRequest` or `ContextLengthExceeded`.
    """
    most = info.max_encoder_len
    if not most and ids:
        raise InvalidRequest("The model has no encoder, which could take an input of its own.", param)
    if most and not ids:
        raise InvalidRequest("Prompt cannot be empty: it is the input of the model's encoder.", param)
    if len(ids) > most:
        raise ContextLengthExceeded(
            f"At most {most} tokens fit the model's encoder, but the prompt has {len(ids)}.", param
        )


class Admission:
    """Holds no requests: whoever asks says how many there are."""

    def __init__(self, info: EngineInfo, max_num_queued: int, max_num_queued_tokens: int | None = None) -> None:
        self._info = info
        self._max_num_queued_tokens = max_num_queued_tokens
        self._capacity = info.max_num_seqs + max_num_queued
        self._last_finish = 0.0
        self._finish_interval = 0.1  # seconds between two ends of samples, smoothed

    def check_servable(self, request: GenerateRequest) -> SamplingParams:
        """The parameters with `max_tokens` set. Raises `InvalidRequest` or `ContextLengthExceeded` for a request that
        is refused whatever else is served."""
        if request.pooling is not None:
            check_text(request.prompt_token_ids, self._info)
            params = request.params
        else:
            num_prompt = request.num_virtual_tokens + len(request.prompt_token_ids)
            params = sized(request.params, num_prompt, self._info)
        check_encoder_input(request.encoder_token_ids, self._info)
        if (most := self._info.max_media_items) and len(request.media) > most:
            raise InvalidRequest(f"The model takes at most {most} images in one request.", "messages")
        for item in request.media:
            if (refusal := item.time_refusal(self._info.max_model_len)) is not None:
                raise InvalidRequest(refusal, "messages")
        self._check_ids([*request.prompt_token_ids, *request.encoder_token_ids], bool(request.adapter))
        if (params.prompt_logprobs or 0) * len(request.prompt_token_ids) > MAX_PROMPT_SCORES:
            raise InvalidRequest(
                f"`prompt_logprobs` times the length of the prompt must be at most {MAX_PROMPT_SCORES}.",
                "prompt_logprobs",
            )
        if request.num_sequences > self._capacity:
            name = "n" if request.beams is None else "best_of"
            raise InvalidRequest(
                f"`{name}` must be at most {self._capacity}, the most sequences this server holds.", name
            )
        return params

    def check(self, request: GenerateRequest, num_unfinished: int, num_queued_tokens: int = 0) -> SamplingParams:
        """`check_servable`, and whether there is room now: `num_unfinished` samples are in flight, and the prompts of
        those that have no token yet have `num_queued_tokens`. Raises `Overloaded` where there is none."""
        params = self.check_servable(request)
        count = request.num_sequences
        if num_unfinished + count > self._capacity:
            waiting = max(0, num_unfinished - self._info.max_num_seqs)
            raise self._overloaded(f"{waiting} requests are waiting", count, "max_num_queued_reqs")
        # With nothing in the queue the longest prompt is let in: it would never be otherwise.
        most, wanted = self._max_num_queued_tokens, count * request.num_prompt_tokens
        if most is not None and num_queued_tokens and num_queued_tokens + wanted > most:
            raise self._overloaded(f"{num_queued_tokens} tokens of prompts are waiting", count, "max_num_queued_tokens")
        return params

    def _overloaded(self, what: str, num_samples: int, reason: str) -> Overloaded:
        retry_after = min(MAX_RETRY_AFTER, max(1, math.ceil(num_samples * self._finish_interval)))
        return Overloaded(f"The server is busy: {what}. Try again later.", retry_after, reason)

    def note_finish(self, now: float) -> None:
        """A sample ended."""
        if self._last_finish:
            self._finish_interval += 0.1 * (now - self._last_finish - self._finish_interval)
        self._last_finish = now

    def _check_ids(self, ids: list[int], has_adapter: bool) -> None:
        # Against the width of the logits, not the tokenizer's length: an id beyond it would reach foreign memory.
        num_ids = self._info.vocab_size + (self._info.extra_tokens if has_adapter else 0)
        if min(ids) < 0 or max(ids) >= num_ids:
            raise InvalidRequest(f"The prompt has token ids outside 0..{num_ids - 1}.", "prompt")
