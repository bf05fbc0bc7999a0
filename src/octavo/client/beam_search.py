"""Beam search over requests of one token each.

The engine knows nothing of beams: each step sends every beam as a prompt of its own and asks for its next token's most
likely candidates; the prefix cache holds what the beams share. A search is one request to its caller: one stream, of
one delta with the best samples, best first. It is exact in that it depends on the request alone.

    score = cumulative log probability / (tokens of prompt and output, without a final EOS) ** length_penalty
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from octavo.base.errors import OctavoError
from octavo.base.params import BeamParams, GenerateRequest, SamplingParams
from octavo.client.generation import CompletionDelta, Detokenizer, FinalOutput, GenerationDelta, GenerationStream, fold
from octavo.client.observer import FinishedRequest, FinishedSample, Observer, RequestTimes
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import EngineInfo, TokenLogprobs


@dataclass(slots=True, eq=False)
class Held:
    """A search that is under way, for who may end it: between two steps there is nothing of it in the engine."""

    request: GenerateRequest
    error: OctavoError | None = None

    def check(self) -> None:
        """Raise the error with which the search was ended."""
        if self.error is not None:
            raise self.error


class BeamClient(Protocol):
    """`client.engine_client.EngineClient`, as far as a search needs it."""

    info: EngineInfo
    eos_token_ids: tuple[int, ...]

    def submit(self, request: GenerateRequest, params: SamplingParams) -> GenerationStream:
        """Start a request without asking whether new ones are taken."""
        ...

    def in_flight(self, request: GenerateRequest) -> AbstractContextManager[Held]:
        """The block counts as this request, also between two steps."""
        ...

    def detokenizer(
        self, params: SamplingParams, shown: frozenset[int] = ..., tokenizer: Tokenizer | None = None
    ) -> Detokenizer: ...


@dataclass(frozen=True, slots=True)
class _Beam:
    token_ids: tuple[int, ...] = ()
    cumulative: float = 0.0
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    stop_reason: int | None = None


async def beam_search(
    client: BeamClient,
    request: GenerateRequest,
    params: SamplingParams,
    observer: Observer,
) -> AsyncGenerator[GenerationDelta, None]:
    """The stream of a request with `beams`. `params` has `max_tokens` set. `observer` is told of the ends of its best
    samples and its own."""
    search = _Search(client, request, params)
    with client.in_flight(request) as held:
        try:
            best = await search.run(held)
        except BaseException as exc:
            reason = "error" if isinstance(exc, OctavoError) else "abort"
            search.tell(observer, [_Beam(finish_reason=reason)])
            raise
        times = search.tell(observer, best)
        yield search.delta(best, times)


class _Search:
    def __init__(self, client: BeamClient, request: GenerateRequest, params: SamplingParams) -> None:
        assert request.beams is not None and params.max_tokens is not None
        self._client = client
        self._request = request
        self._params = params
        self._max_tokens: int = params.max_tokens
        self._beams: BeamParams = request.beams
        self._num_candidates = min(2 * self._beams.width, client.info.vocab_size)
        self._eos = frozenset(() if params.ignore_eos else client.eos_token_ids)
        self._ends = self._eos | frozenset(params.stop_token_ids)
        self._step_params = msgspec.structs.replace(
            params,
            n=1,
            max_tokens=1,
            min_tokens=0,
            stop_token_ids=(),
            ignore_eos=True,
            logprobs=max(self._num_candidates, params.logprobs or 0),
        )
        self._num_cached = 0
        self._scheduled_time = self._first_time = 0.0

    async def run(self, held: Held) -> list[_Beam]:
        """The best `n` beams, best first. Raises what the search was ended with."""
        running, finished = [_Beam()], list[_Beam]()
        for step in range(self._max_tokens):
            finals = await self._next_tokens(running)
            held.check()
            children = self._children(running, finals)
            running = []
            # Twice the width: even if half of them end here, the beam stays full.
            for child in children[: 2 * self._beams.width]:
                if child.finish_reason is not None:
                    finished.append(child)
                elif len(running) < self._beams.width:
                    running.append(child)
            finished = self._ranked(finished)[: self._beams.width]
            if not running or (step + 1 < self._max_tokens and self._is_over(running, finished)):
                return finished[: self._params.n]
        cut = [replace(beam, finish_reason="length") for beam in running]
        return self._ranked(finished + cut)[: self._params.n]

    # ------------------------------------------------------------ one step
    async def _next_tokens(self, running: list[_Beam]) -> list[FinalOutput]:
        streams: list[GenerationStream] = []
        try:
            for beam in running:
                ids = [*self._request.prompt_token_ids, *beam.token_ids]
                # The prompt of a step behind the first was counted with the first.
                step = msgspec.structs.replace(
                    self._request, prompt_token_ids=ids, params=self._step_params, is_counted=not beam.token_ids
                )
                streams.append(self._client.submit(step, self._step_params))
            finals = [await fold(stream) for stream in streams]
        finally:
            for stream in streams:
                await stream.aclose()
        if not self._first_time:
            self._first_time = time.monotonic()
            self._num_cached = finals[0].num_cached_tokens
            if finals[0].times is not None:
                self._scheduled_time = finals[0].times.scheduled
        return finals

    def _children(self, running: list[_Beam], finals: list[FinalOutput]) -> list[_Beam]:
        """Every beam with each of its candidates, likeliest first; equal ones in the order of their parents."""
        children = []
        for beam, final in zip(running, finals, strict=True):
            entry = (final.outputs[0].logprobs or [])[0]
            for rank, (token_id, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), 1):
                child = self._child(beam, token_id, TokenLogprobs(logprob, rank, entry.top_ids, entry.top_logprobs))
                if rank <= self._num_candidates and child is not None:
                    children.append(child)
        return sorted(children, key=lambda child: -child.cumulative)

    def _child(self, beam: _Beam, token_id: int, entry: TokenLogprobs) -> _Beam | None:
        """None for a token that may not come here."""
        is_end = token_id in self._ends
        if entry.logprob == float("-inf") or (is_end and len(beam.token_ids) < self._params.min_tokens):
            return None
        return _Beam(
            (*beam.token_ids, token_id),
            beam.cumulative + entry.logprob,
            (*beam.logprobs, entry),
            "stop" if is_end else None,
            token_id if is_end and token_id not in self._eos else None,
        )

    # ------------------------------------------------------------ order and end
    def _score(self, beam: _Beam, length: int | None = None) -> float:
        if length is None:
            length = len(self._request.prompt_token_ids) + len(beam.token_ids)
            if beam.token_ids and beam.token_ids[-1] in self._eos:
                length -= 1
        # One token of prompt less the EOS would be none.
        return float(beam.cumulative / max(1, length) ** self._beams.length_penalty)

    def _ranked(self, beams: list[_Beam]) -> list[_Beam]:
        return sorted(beams, key=lambda beam: -self._score(beam))

    def _is_over(self, running: list[_Beam], finished: list[_Beam]) -> bool:
        """Whether the search ends now, by `early_stopping` (S23). `finished` is ranked."""
        if len(finished) < self._beams.width:
            return False
        if self._beams.early_stopping is True:
            return True
        length = None
        if self._beams.early_stopping == "never" and self._beams.length_penalty > 0:
            # A longer text divides by more: the best that a running beam could still reach.
            length = len(self._request.prompt_token_ids) + self._max_tokens
        return self._score(finished[-1]) >= self._score(running[0], length)

    # ------------------------------------------------------------ result
    def delta(self, best: list[_Beam], times: RequestTimes) -> GenerationDelta:
        outputs = [self._output(index, beam) for index, beam in enumerate(best)]
        num_output = sum(len(beam.token_ids) for beam in best)
        num_prompt = self._request.num_prompt_tokens
        return GenerationDelta(outputs, num_prompt, self._num_cached, num_output, True, times=times)

    def _output(self, index: int, beam: _Beam) -> CompletionDelta:
        ids = list(beam.token_ids)
        hides_end = beam.finish_reason == "stop" and not self._params.include_stop_str_in_output
        detokenizer = self._client.detokenizer(self._params, tokenizer=self._request.tokenizer)
        text = detokenizer.push(ids[:-1] if hides_end else ids) + detokenizer.finish()
        logprobs = None
        if (k := self._params.logprobs) is not None:
            logprobs = [TokenLogprobs(e.logprob, e.rank, e.top_ids[:k], e.top_logprobs[:k]) for e in beam.logprobs]
        return CompletionDelta(index, text, ids, logprobs, beam.finish_reason, beam.stop_reason)

    def tell(self, observer: Observer, ended: list[_Beam]) -> RequestTimes:
        """Tell of the end of these beams and of the request."""
        now, first = time.monotonic(), self._first_time
        times = RequestTimes(self._request.arrival_time, self._scheduled_time, first, now if first else 0.0, now)
        reasons = tuple(beam.finish_reason or "length" for beam in ended)
        lengths = tuple(len(beam.token_ids) for beam in ended)
        for reason, length in zip(reasons, lengths, strict=True):
            observer.on_finish(FinishedSample(self._request, reason, length, self._num_cached, times))
        observer.on_request_finish(FinishedRequest(self._request, times, reasons, lengths, self._num_cached))
        return times
