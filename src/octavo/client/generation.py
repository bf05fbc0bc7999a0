"""What a generation yields, and the state of one between the engine's steps and its reader.

A request of n samples is n requests of the engine and one stream here. Every step's tokens are put into the
samples (`SampleState.accept`) without a task or a queue; the reader takes all that has gathered since it last
looked (`RequestState.take`), so a slow reader gets few large deltas and memory is bounded by the text itself.
Text is decoded when it is read. Only samples with stop strings decode at once, because a hit must free the
engine whether or not anybody reads.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Protocol

from octavo.base.params import GenerateRequest
from octavo.client.observer import FinishedRequest, FinishedSample, RequestTimes, merged_times
from octavo.wire.messages import EngineCoreOutput, StepSeconds, TokenLogprobs


@dataclass(slots=True)
class CompletionDelta:
    """News of one sample. The text may lag behind the tokens: a part of a character or of a stop string is held."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one for each of token_ids, when asked for
    finish_reason: str | None = None  # "stop", "length", "repetition" or "abort"; set once, in the sample's last delta
    stop_reason: int | str | None = None  # the stop string, or the stop token's id


@dataclass(frozen=True, slots=True)
class PromptProgress:
    """How much of a prompt is computed: tokens, with those of the prefix cache, and seconds since it began."""

    num_tokens: int
    num_cached: int
    seconds: float


@dataclass(slots=True)
class GenerationDelta:
    """News of one request: at most one entry a sample, those without news left out."""

    outputs: list[CompletionDelta]
    num_prompt_tokens: int
    num_cached_tokens: int  # prompt tokens that the first sample found in the prefix cache
    num_output_tokens: int  # of all samples so far
    finished: bool
    #: In the first delta, when asked for: of each prompt token but the first.
    prompt_logprobs: list[TokenLogprobs] | None = None
    times: RequestTimes | None = None  # in the last delta
    progress: PromptProgress | None = None  # when asked for: before the first token, and with it
    pooled: bytes | None = None  # the vector that was wanted in place of tokens; in the only delta


@dataclass(slots=True)
class Completion:
    """The whole of one sample."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class FinalOutput:
    """The whole of one request: the fold of its deltas, samples in the order of their index."""

    outputs: list[Completion]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    prompt_logprobs: list[TokenLogprobs] | None = None
    times: RequestTimes | None = None


async def fold(stream: AsyncIterable[GenerationDelta]) -> FinalOutput:
    """Gather a stream into its final result. Errors of the stream pass through."""
    texts: dict[int, list[str]] = {}
    completions: dict[int, Completion] = {}
    final = FinalOutput([], 0, 0, 0)
    async for delta in stream:
        final.num_prompt_tokens = delta.num_prompt_tokens
        final.num_cached_tokens = delta.num_cached_tokens
        final.num_output_tokens = delta.num_output_tokens
        if delta.prompt_logprobs is not None:
            final.prompt_logprobs = delta.prompt_logprobs
        if delta.times is not None:
            final.times = delta.times
        for part in delta.outputs:
            whole = completions.setdefault(part.index, Completion(part.index))
            texts.setdefault(part.index, []).append(part.text)
            whole.token_ids += part.token_ids
            if part.logprobs is not None:
                whole.logprobs = (whole.logprobs or []) + part.logprobs
            if part.finish_reason is not None:
                whole.finish_reason, whole.stop_reason = part.finish_reason, part.stop_reason
    for index in sorted(completions):
        completions[index].text = "".join(texts[index])
        final.outputs.append(completions[index])
    return final


class Detokenizer(Protocol):
    """`text.tokenizers.detokenizer.IncrementalDetokenizer`."""

    @property
    def num_held(self) -> int: ...

    def push(self, ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class StopSearch(Protocol):
    """`text.tokenizers.stop.StopMatcher`."""

    def push(self, text: str) -> tuple[str, str | None]: ...

    def finish(self) -> str: ...


@dataclass(frozen=True, slots=True)
class OpenSequence:
    """What is known of a sample that is not at its end."""

    number: int  # of all samples that there were
    request: GenerateRequest
    num_tokens: int  # so far
    num_cached_tokens: int  # of the prompt; 0 before the first token


class SampleState:
    """One sample: what the engine sent and the reader has not taken yet.

    Times are time.monotonic() seconds, 0.0 until they happen. `accept` is called by the client's receive loop,
    `take` by the reader, both on one event loop.
    """

    __slots__ = (
        "detokenizer",
        "end_reason",
        "finish_reason",
        "finish_time",
        "first_token_time",
        "index",
        "is_dirty",
        "keeps_stop",
        "last_token_time",
        "logprobs",
        "matcher",
        "min_tokens",
        "num_cached_tokens",
        "num_tokens",
        "pooled",
        "request",
        "request_id",
        "scheduled_time",
        "step_seconds",
        "stop_reason",
        "text",
        "token_ids",
        "undecoded",
    )

    def __init__(
        self, request: RequestState, request_id: int, index: int, detokenizer: Detokenizer, matcher: StopSearch | None
    ) -> None:
        params = request.request.params
        self.request = request
        self.request_id = request_id
        self.index = index
        self.detokenizer = detokenizer
        self.matcher = matcher
        self.min_tokens = params.min_tokens
        self.keeps_stop = params.include_stop_str_in_output
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.scheduled_time = self.first_token_time = self.last_token_time = 0.0
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.pooled: bytes | None = None
        self.end_reason = ""  # the finish reason, or why it was cut off: "abort" or "error"
        self.finish_time = 0.0  # time.monotonic() of either
        self.step_seconds: StepSeconds | None = None
        self.is_dirty = False
        # not taken yet
        self.text = ""
        self.token_ids: list[int] = []
        self.undecoded: list[int] = []  # of a sample without stop strings; decoded when taken
        self.logprobs: list[TokenLogprobs] | None = [] if params.logprobs is not None else None

    def accept(self, output: EngineCoreOutput) -> None:
        """Add one step's tokens. Sets `finish_reason` when the engine, or a stop string, ends the sample."""
        ids, reason = output.new_token_ids, output.finish_reason
        if output.pooled is not None:
            self.pooled = output.pooled
        if output.step_seconds is not None:
            self.step_seconds = output.step_seconds
        # The text of the token that stopped the request is not part of the answer.
        shown = ids[:-1] if reason == "stop" and not (self.keeps_stop or output.is_complete) else ids
        if self.matcher is None:
            self.undecoded += shown
            num_kept = len(ids)
        else:
            num_kept = self._match(self.matcher, shown, reason is not None)
            if self.finish_reason is None:
                num_kept = len(ids)
        self.num_tokens += num_kept
        self.token_ids += ids[:num_kept]
        if self.logprobs is not None and output.logprobs is not None:
            self.logprobs += output.logprobs[:num_kept]
        if reason is not None and self.finish_reason is None:
            self.finish_reason, self.stop_reason = reason, output.stop_reason

    def note_progress(self, output: EngineCoreOutput) -> None:
        """A part of the prompt is computed. Samples share it: the first tells."""
        if output.num_computed_tokens and self.index == 0:
            seconds = time.monotonic() - output.scheduled_time
            self.request.progress = PromptProgress(output.num_computed_tokens, output.num_cached_tokens, seconds)
            self.request.wake()

    def whole_prompt(self) -> PromptProgress | None:
        """All of the prompt is computed; None: the request ended before that."""
        if not self.first_token_time:
            return None
        seconds = self.first_token_time - self.scheduled_time
        return PromptProgress(self.request.request.num_prompt_tokens, self.num_cached_tokens, seconds)

    @property
    def times(self) -> RequestTimes:
        return RequestTimes(
            self.request.request.arrival_time,
            self.scheduled_time,
            self.first_token_time,
            self.last_token_time,
            self.finish_time,
        )

    def finished(self) -> FinishedSample:
        """The end of the sample, for whoever keeps count."""
        return FinishedSample(
            self.request.request, self.end_reason, self.num_tokens, self.num_cached_tokens, self.times
        )

    def _match(self, matcher: StopSearch, shown: list[int], is_last: bool) -> int:
        """Decode token by token up to the first stop string. Returns how many of `shown` were used.

        The first `min_tokens` tokens are not searched, and a match lies wholly in the text after them.
        """
        for i, token_id in enumerate(shown):
            text = self.detokenizer.push([token_id])
            if self.num_tokens + i < self.min_tokens:
                self.text += text
            elif self._search(matcher, text):
                return i + 1
        if is_last and not self._search(matcher, self.detokenizer.finish()):
            self.text += matcher.finish()
        return len(shown)

    def _search(self, matcher: StopSearch, text: str) -> bool:
        emit, matched = matcher.push(text)
        self.text += emit
        if matched is None:
            return False
        self.finish_reason, self.stop_reason = "stop", matched
        return True

    def take(self) -> CompletionDelta:
        """All that gathered since the last call; the state is empty afterwards."""
        text, ids, logprobs = self.text, self.token_ids, self.logprobs
        if self.undecoded:
            text += self.detokenizer.push(self.undecoded)
            self.undecoded = []
        if self.finish_reason is not None and self.matcher is None:
            text += self.detokenizer.finish()
        self.text, self.token_ids, self.is_dirty = "", [], False
        if logprobs is not None:
            self.logprobs = []
        return CompletionDelta(self.index, text, ids, logprobs, self.finish_reason, self.stop_reason)


class RequestState:
    """One request: its samples, those with news, and the reader that waits, if any."""

    __slots__ = (
        "dirty",
        "error",
        "is_closed",
        "is_taken",
        "num_open",
        "progress",
        "prompt_logprobs",
        "request",
        "samples",
        "waiter",
    )

    def __init__(self, request: GenerateRequest) -> None:
        self.request = request
        self.samples: list[SampleState] = []
        self.dirty: list[SampleState] = []
        self.num_open = 0  # samples without a finish reason
        self.error: Exception | None = None
        self.is_closed = False
        self.is_taken = False  # the first delta is out
        self.prompt_logprobs: list[TokenLogprobs] = []
        self.progress: PromptProgress | None = None  # news of it
        self.waiter: asyncio.Future[None] | None = None

    @property
    def has_news(self) -> bool:
        """There is a delta to take. The first waits for the prompt's log probabilities, which the first sample has."""
        if self.request.is_whole and self.num_open:
            return False
        if self.progress is not None:
            return True
        if not self.dirty or self.is_taken or self.request.params.prompt_logprobs is None:
            return bool(self.dirty)
        return self.samples[0].num_tokens > 0 or self.samples[0].finish_reason is not None

    def mark(self, sample: SampleState) -> bool:
        """`sample` has news. True: it had none before, and the reader should be told."""
        if sample.is_dirty:
            return False
        sample.is_dirty = True
        self.dirty.append(sample)
        return not self.request.is_whole

    def wake(self) -> None:
        """Let the reader look, if it waits."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def take(self) -> GenerationDelta:
        params, progress, self.progress = self.request.params, self.progress, None
        if progress is not None and not self.dirty:
            return GenerationDelta([], self.request.num_prompt_tokens, progress.num_cached, 0, False, progress=progress)
        progress = None
        if params.return_progress and not self.is_taken:
            progress = self.samples[0].whole_prompt()
        outputs = [sample.take() for sample in self.dirty]
        self.dirty.clear()
        is_scored = params.prompt_logprobs is not None and not self.is_taken
        is_over = self.num_open == 0 and self.error is None
        self.is_taken = True
        return GenerationDelta(
            outputs,
            self.request.num_prompt_tokens,
            self.samples[0].num_cached_tokens,
            sum(sample.num_tokens for sample in self.samples),
            is_over,
            self.prompt_logprobs if is_scored else None,
            self.times if is_over else None,
            progress,
            self.samples[0].pooled,
        )

    @property
    def times(self) -> RequestTimes:
        """Over all samples."""
        return merged_times([sample.times for sample in self.samples])

    def finished(self) -> FinishedRequest:
        """The end of all samples, for whoever keeps count."""
        seconds = [sample.step_seconds for sample in self.samples if sample.step_seconds is not None]
        return FinishedRequest(
            self.request,
            self.times,
            tuple(sample.end_reason for sample in self.samples),
            tuple(sample.num_tokens for sample in self.samples),
            self.samples[0].num_cached_tokens,
            max(seconds, key=lambda spent: spent.scheduler, default=None),
        )


class GenerationStream(AsyncIterator[GenerationDelta]):
    """The reader's end of one request. Closing, cancelling or dropping it aborts the request. One reader at a time."""

    def __init__(
        self, state: RequestState, close: Callable[[RequestState], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._state = state
        self._close_request = close
        self._loop = loop
        self._is_over = False

    def __aiter__(self) -> GenerationStream:
        return self

    async def __anext__(self) -> GenerationDelta:
        """All news since the last call. Raises the request's error after the news that came before it."""
        state = self._state
        try:
            while not state.has_news:
                if self._is_over or state.is_closed:
                    raise StopAsyncIteration
                if state.error is not None:
                    raise state.error
                if state.waiter is not None:
                    raise RuntimeError("Two readers wait for one stream.")
                state.waiter = self._loop.create_future()
                try:
                    await state.waiter
                finally:
                    state.waiter = None
            delta = state.take()
        except BaseException:
            self._close()
            raise
        self._is_over = delta.finished
        return delta

    async def aclose(self) -> None:
        """End the stream; the request is aborted if it still runs. May be called again."""
        self._close()

    def _close(self) -> None:
        self._is_over = True
        self._state.dirty.clear()
        self._close_request(self._state)

    def __del__(self) -> None:
        # Only a stream that nobody closed comes here with work to do. The collector runs in whatever thread it likes.
        state = self._state
        if state.num_open and not state.is_closed and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close_request, state)
