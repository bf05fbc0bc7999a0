"""The way to the engine process: requests go in, streams of deltas come out.

One receive loop takes each step's outputs for all requests in one pass; there is no task, queue or lock a request.
Laws: every stream ends, in a result or an error; a stream that is closed, dropped or cancelled aborts its requests
exactly once and leaves no id behind; what comes for an unknown id is ignored; ids are ours, counted up, and what a
caller calls its request is never a key.

Everything here runs on the event loop that called `start`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.base.config import EngineConfig
from octavo.base.errors import Aborted, EngineDead, OctavoError, Overloaded, ServerError, ShuttingDown, unusable_adapter
from octavo.base.params import GenerateRequest, SamplingParams
from octavo.client.admission import Admission
from octavo.client.beam_search import Held, beam_search
from octavo.client.engine_link import Calls, VocabularySender
from octavo.client.generation import GenerationDelta, GenerationStream, OpenSequence, RequestState, SampleState
from octavo.client.observer import NoObserver, Observer
from octavo.client.rounds import Rounds
from octavo.client.siblings import NoSiblings, Occupancy, Siblings, numbers_of
from octavo.client.sleep_mode import SleepMode
from octavo.client.watchdog import TICK_SECONDS, EngineHandle, Watchdog, exit_reason
from octavo.text.tokenizers.detokenizer import IncrementalDetokenizer
from octavo.text.tokenizers.stop import StopMatcher
from octavo.text.tokenizers.vocabulary import all_eos_token_ids
from octavo.wire.messages import (
    Abort,
    AdapterInfo,
    AddRequest,
    CallResult,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineInfo,
    FromEngine,
    Heartbeat,
    SchedulerStats,
    Shutdown,
)
from octavo.wire.transport import Connection, TransportError

if TYPE_CHECKING:
    from octavo.text.tokenizers.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

#: What streams are told that the server's end cuts off.
SHUT_DOWN = "The server shut down before the request was finished."


class EngineClient:
    """The engine, seen from the API process. `start` on the event loop, `close` at the end."""

    def __init__(
        self,
        connection: Connection[FromEngine],
        info: EngineInfo,
        tokenizer: Tokenizer,
        config: EngineConfig | None = None,
        *,
        process: EngineHandle | None = None,
        observer: Observer | None = None,
        on_dead: Callable[[str], None] | None = None,
        has_vocabulary: bool = False,
        siblings: Siblings | None = None,
        occupancy: Occupancy | None = None,
    ) -> None:
        """`has_vocabulary`: the engine was sent it while it started. `siblings`: the API processes of the engine, and
        `occupancy` what they hold; None: this is the only one."""
        self.info = info
        self.stats: SchedulerStats | None = None  # of the last step
        self.dead_reason: str | None = None
        self.is_draining = False
        self._is_closing = False
        self._connection = connection
        self._tokenizer = tokenizer
        self._config = config or EngineConfig()
        self._process = process
        self._observer = observer or NoObserver()
        self._on_dead = on_dead
        self.eos_token_ids = all_eos_token_ids(tokenizer, info)
        self._vocabulary = VocabularySender(connection, tokenizer, self.eos_token_ids, is_sent=has_vocabulary)
        self._admission = Admission(
            info, self._config.scheduler.max_num_queued_reqs, self._config.scheduler.max_num_queued_tokens
        )
        self._num_held = 0  # sequences of beam searches, whether or not their steps are in the engine
        self._searches: set[Held] = set()
        self._num_sampled = 0  # samples of all other requests
        self._num_queued_tokens = 0  # prompt tokens of samples without a token yet
        self._samples: dict[int, SampleState] = {}
        siblings = siblings or NoSiblings()
        self._is_only = siblings.count == 1
        self._occupancy = occupancy
        self._ids = numbers_of(siblings)
        self._rounds = Rounds()
        self._calls = Calls(connection, numbers_of(siblings))
        self.sleep_mode = SleepMode(self.call, self._end_for_sleep, self.wait_idle, self._observer.on_sleep, siblings)
        self._idle = asyncio.Event()
        self._idle.set()
        self._watchdog = Watchdog(self._config.parallel, process.probe if process is not None else None)
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ life
    def start(self) -> None:
        """Begin to receive and to watch. Call it on the event loop that will use the client."""
        self._tasks = [asyncio.create_task(self._receive_loop()), asyncio.create_task(self._watch_loop())]

    async def close(self, wait: float = 1.0) -> None:
        """End the open streams with `ShuttingDown`, tell the engine to stop unless others have it too, and close the
        connection.

        The engine gets `wait` seconds to finish its step.
        """
        self.is_draining = self._is_closing = True
        self.abort_all(ShuttingDown(SHUT_DOWN))
        self._calls.fail(ShuttingDown(SHUT_DOWN))
        if self.dead_reason is None and self._tasks and self._is_only:
            with contextlib.suppress(TransportError):
                self._connection.send(Shutdown())
                await asyncio.wait(self._tasks[:1], timeout=wait)  # it answers by closing its end
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._connection.close()

    @property
    def is_healthy(self) -> bool:
        """The engine answers. Also true while draining."""
        return self.dead_reason is None

    @property
    def is_ready(self) -> bool:
        """A new request would be taken."""
        return self.dead_reason is None and not self.is_draining and not self.sleep_mode.is_asleep

    @property
    def num_unfinished(self) -> int:
        """Samples, running or waiting, of all open streams."""
        return len(self._samples)

    def sequences(self) -> list[OpenSequence]:
        """The samples of all open streams, running or waiting, those first that came first."""
        return [
            OpenSequence(s.request_id, s.request.request, s.num_tokens, s.num_cached_tokens)
            for s in self._samples.values()
        ]

    def start_draining(self) -> None:
        """From now on new requests are refused with `ShuttingDown`; those in flight go on."""
        self.is_draining = True

    async def wait_idle(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def abort_all(self, error: ServerError, matches: Callable[[str], bool] = lambda external_id: True) -> int:
        """End every open stream of a matching public id with an error like `error`; the value is their number."""
        states = {id(sample.request): sample.request for sample in self._samples.values()}
        found = [state for state in states.values() if state.request.has_id(matches)]
        searches = [held for held in self._searches if held.request.has_id(matches) and held.error is None]
        # Each stream raises its own: one object raised in many places gathers all their tracebacks.
        for held in searches:
            held.error = type(error)(error.message)
        for state in found:
            self._fail(state, type(error)(error.message))
        # The steps of a search are requests of its own.
        return len(searches) + sum(state.request.beams is None for state in found)

    def abort(self, matches: Callable[[str], bool]) -> int:
        """End the requests of matching public ids with `Aborted`, as an administrator asks."""
        return self.abort_all(Aborted(), matches)

    def _end_for_sleep(self) -> None:
        self.abort_all(Aborted("An administrator sent the model to sleep, which ended this request."))

    # ------------------------------------------------------------ requests
    def check_servable(self, request: GenerateRequest) -> None:
        """Raise `InvalidRequest` or `ContextLengthExceeded` for what `generate` would refuse at any time."""
        request.params.check_choice(self.eos_token_ids, self.info.vocab_size)
        self._admission.check_servable(request)

    def generate(self, request: GenerateRequest) -> GenerationStream | AsyncGenerator[GenerationDelta, None]:
        """Start a request and return its stream. `request.params.n` samples are generated.

        Raises, before anything is sent: `InvalidRequest` or `ContextLengthExceeded` for a request that cannot be
        served, `Overloaded` when too many wait, `ShuttingDown` while draining, `EngineDead`. The stream itself
        raises `ServerError` when the engine fails the request and `EngineDead` when it dies.
        """
        self._check_alive()
        if self.is_draining:
            raise ShuttingDown("The server is shutting down and takes no new requests.")
        self.sleep_mode.check()
        request.params.check_choice(self.eos_token_ids, self.info.vocab_size)
        others, others_tokens = (0, 0) if self._occupancy is None else self._occupancy.others()
        try:
            params = self._admission.check(
                request, self._num_sampled + self._num_held + others, self._num_queued_tokens + others_tokens
            )
        except Overloaded as exc:
            self._observer.on_refusal(exc)
            raise
        if request.beams is not None:
            search = beam_search(self, request, params, self._observer)
            self._observer.on_request_arrival(request)
            return search
        stream = self.submit(request, params)
        self._observer.on_request_arrival(request)
        return stream

    def submit(self, request: GenerateRequest, params: SamplingParams) -> GenerationStream:
        """`generate` for what is admitted: `params` are the request's with `max_tokens` set."""
        self._check_alive()
        if self._is_closing:
            raise ShuttingDown(SHUT_DOWN)
        state = RequestState(request)
        stream = GenerationStream(state, self._close, asyncio.get_running_loop())
        now = time.monotonic()
        # Stop strings are found here, and n requests are sent: the engine needs to know of neither.
        engine_params = msgspec.structs.replace(params, n=1, best_of=None, stop=())
        # The prompt is scored once: the other samples take it from the prefix cache.
        other_params = msgspec.structs.replace(engine_params, prompt_logprobs=None)
        try:
            if params.grammar is not None:
                self._vocabulary.send_once()
            for index in range(params.n):
                sample = self._new_sample(state, index, params)
                self._connection.send(
                    AddRequest(
                        request_id=sample.request_id,
                        prompt_token_ids=request.prompt_token_ids,
                        params=other_params if index else engine_params,
                        eos_token_ids=self.eos_token_ids if request.tokenizer is None else request.eos_token_ids,
                        sample_index=index,
                        priority=request.priority,
                        cache_salt=request.cache_salt,
                        adapter=request.adapter,
                        adapter_path=request.adapter_path,
                        num_virtual_tokens=request.num_virtual_tokens,
                        arrival_time=request.arrival_time or now,
                        media=request.media,
                        pooling=request.pooling,
                        is_counted=request.is_counted,
                        encoder_token_ids=request.encoder_token_ids,
                        encoder_frames=request.encoder_frames,
                    )
                )
        except TransportError as exc:
            # The receive loop is about to find the same and to say why.
            self._close(state)
            raise EngineDead(self.dead_reason or "The connection to the engine is lost.") from exc
        except Exception:
            self._close(state)  # samples that were sent must not run on without a reader
            raise
        return stream

    async def prepare_grammars(self) -> None:
        """Make what a first request with a grammar needs, without holding up the streams."""
        await self._vocabulary.prepare()

    @contextlib.contextmanager
    def in_flight(self, request: GenerateRequest) -> Iterator[Held]:
        """The block counts as this request: the client is not idle, whatever comes and goes in it. The value is marked
        when the request is ended."""
        held = Held(request)
        self._searches.add(held)
        self._num_held += request.num_sequences
        self._tell_occupancy()
        self._idle.clear()
        try:
            yield held
        finally:
            self._searches.remove(held)
            self._num_held -= request.num_sequences
            self._tell_occupancy()
            self._note_idle()

    def detokenizer(
        self, params: SamplingParams, shown: frozenset[int] = frozenset(), tokenizer: Tokenizer | None = None
    ) -> IncrementalDetokenizer:
        """`shown`: special tokens that stay in the text all the same. `tokenizer`: None: the model's."""
        return IncrementalDetokenizer(tokenizer or self._tokenizer, params.skip_special_tokens, shown)

    def _tell_occupancy(self) -> None:
        if self._occupancy is not None:
            self._occupancy.tell(self._num_sampled + self._num_held, self._num_queued_tokens)

    def _note_idle(self) -> None:
        if not self._samples and not self._num_held:
            self._idle.set()

    def _new_sample(self, state: RequestState, index: int, params: SamplingParams) -> SampleState:
        detokenizer = self.detokenizer(params, state.request.shown_special_ids, state.request.tokenizer)
        matcher = StopMatcher(params.stop, params.include_stop_str_in_output) if params.stop else None
        sample = SampleState(state, next(self._ids), index, detokenizer, matcher)
        state.samples.append(sample)
        state.num_open += 1
        self._samples[sample.request_id] = sample
        self._num_sampled += state.request.beams is None
        self._num_queued_tokens += state.request.num_prompt_tokens
        self._tell_occupancy()
        self._idle.clear()
        return sample

    def _check_alive(self) -> None:
        if self.dead_reason is not None:
            raise EngineDead(self.dead_reason)

    # ------------------------------------------------------------ ends
    def _close(self, state: RequestState) -> None:
        """The reader is gone: abort what still runs. Does nothing the second time."""
        if state.is_closed:
            return
        state.is_closed = True
        self._abort_open(state, "abort")
        state.wake()

    def _fail(self, state: RequestState, error: OctavoError) -> None:
        """End the request with an error for its reader."""
        if state.error is None and not state.is_closed:
            state.error = error
            self._abort_open(state, "error")
            state.wake()

    @staticmethod
    def _error_of(state: RequestState, output: EngineCoreOutput) -> OctavoError:
        text = output.error or "The engine failed this request."
        if output.is_of_adapter:
            return unusable_adapter(state.request.adapter_name, text, "model")
        return ServerError(text)

    def _abort_open(self, state: RequestState, reason: str) -> None:
        ids = [sample.request_id for sample in state.samples if sample.request_id in self._samples]
        now = time.monotonic()
        for request_id in ids:
            self._forget(self._samples[request_id], reason, now)
        self._send_abort(ids)

    def _send_abort(self, ids: list[int]) -> None:
        if ids and self.dead_reason is None:
            try:
                self._connection.send(Abort(ids))
            except TransportError as exc:
                # With the connection the engine is gone, and the requests with it.
                logger.debug("abort not sent: %s", exc)

    def _forget(self, sample: SampleState, reason: str, now: float) -> None:
        del self._samples[sample.request_id]
        if not sample.first_token_time:
            self._num_queued_tokens -= sample.request.request.num_prompt_tokens
        sample.request.num_open -= 1
        self._num_sampled -= sample.request.request.beams is None
        self._tell_occupancy()
        self._note_idle()
        self._admission.note_finish(now)
        sample.end_reason, sample.finish_time = reason, now
        observer = self._observer_of(sample)
        observer.on_finish(sample.finished())
        if not sample.request.num_open:
            observer.on_request_finish(sample.request.finished())

    def _observer_of(self, sample: SampleState) -> Observer:
        """Nobody looks at the steps of a beam search, which is one request and tells of its own end."""
        return self._observer if sample.request.request.beams is None else NoObserver()

    # ------------------------------------------------------------ calls
    async def reset_prefix_cache(self) -> None:
        """Forget every cached block; running requests keep theirs. Raises `ServerError`."""
        await self.call("reset_prefix_cache")

    async def load_adapter(self, key: str, path: str, *, is_prompt: bool = False) -> AdapterInfo:
        """Have the engine read an adapter. Raises `ServerError` with what is wrong with its files."""
        return msgspec.convert(await self.call("load_adapter", key, path, is_prompt), AdapterInfo)

    async def drop_adapter(self, key: str) -> None:
        """No request comes with this adapter any more; those that have it go on."""
        await self.call("drop_adapter", key)

    def adapter_names(self) -> tuple[set[str], set[str]]:
        """Of the LoRA adapters of requests that run, and of those that wait."""
        running: set[str] = set()
        waiting: set[str] = set()
        for sample in self._samples.values():
            request = sample.request.request
            if (name := request.adapter_name) and not request.num_virtual_tokens:
                (running if sample.first_token_time else waiting).add(name)
        return running, waiting

    async def start_profile(self, directory: str, *, with_torch: bool) -> None:
        """Record the engine's steps, and what torch does in them, for files in `directory`. Raises `ServerError`."""
        await self.call("start_profile", directory, with_torch)

    async def stop_profile(self) -> dict[str, Any]:
        """Write what was recorded: `files`, `steps` and `steps_not_recorded`. Raises `ServerError`."""
        recorded: dict[str, Any] = await self.call("stop_profile")
        return recorded

    async def call(self, method: str, *args: Any) -> Any:
        """Run one of the engine's allowed methods between two steps. Raises `ServerError` with the engine's reason."""
        self._check_alive()
        try:
            return await self._calls.call(method, args)
        except TransportError as exc:
            raise EngineDead(self.dead_reason or "The connection to the engine is lost.") from exc

    # ------------------------------------------------------------ from the engine
    async def _receive_loop(self) -> None:
        reason = "the connection was closed"
        try:
            while (message := await self._connection.receive()) is not None:
                self._watchdog.heard()
                if isinstance(message, EngineCoreOutputs):
                    self._on_outputs(message)
                elif isinstance(message, Heartbeat):
                    self._watchdog.beat(message)
                elif isinstance(message, CallResult):
                    self._calls.on_result(message)
        except TransportError as exc:
            reason = exc.message
        except Exception as exc:
            logger.exception("receiving from the engine failed")
            reason = f"receiving from it failed: {type(exc).__name__}"
        if self._process is not None:
            reason = await exit_reason(self._process) or reason
        self._die(reason)

    def _on_outputs(self, message: EngineCoreOutputs) -> None:
        """One step: one pass over its outputs."""
        now = time.monotonic()
        samples = self._samples
        stopped: list[int] = []  # by a stop string: the engine does not know yet
        for output in message.outputs:
            sample = samples.get(output.request_id)
            if sample is None:
                continue  # it was aborted meanwhile
            if output.finish_reason == "error":
                self._fail(sample.request, self._error_of(sample.request, output))
                continue
            try:
                if output.prompt_logprobs:
                    sample.request.prompt_logprobs += output.prompt_logprobs
                if not output.new_token_ids and output.finish_reason is None:
                    sample.note_progress(output)
                    continue
                is_urgent = self._note_times(sample, output, now)
                sample.accept(output)
            except Exception:
                # A bug in one request's text must not end the others.
                external_id = sample.request.request.external_id
                logger.exception("request %s failed", external_id, extra={"request_id": external_id})
                self._fail(sample.request, ServerError("Decoding the output of this request failed."))
                continue
            if sample.finish_reason is not None:
                if output.finish_reason is None:
                    stopped.append(output.request_id)
                self._forget(sample, sample.finish_reason, now)
                is_urgent = True
            has_news = sample.request.mark(sample)
            if is_urgent:
                sample.request.wake()
            elif has_news:
                self._rounds.add(sample.request)
        self._rounds.plan(now)
        if stopped:
            self._send_abort(stopped)
        self.stats = message.stats
        self._observer.on_stats(message.stats)

    def _note_times(self, sample: SampleState, output: EngineCoreOutput, now: float) -> bool:
        """Whether these are the sample's first tokens."""
        if not output.new_token_ids and output.pooled is None:
            return False
        observer = self._observer_of(sample)
        is_first = not sample.first_token_time
        if is_first:
            sample.first_token_time = now
            self._num_queued_tokens -= sample.request.request.num_prompt_tokens
            self._tell_occupancy()
            sample.scheduled_time = output.scheduled_time
            sample.num_cached_tokens = output.num_cached_tokens
            arrival = sample.request.request.arrival_time or now
            observer.on_first_token(max(0.0, output.scheduled_time - arrival), now - arrival)
        else:
            observer.on_tokens(len(output.new_token_ids), now - sample.last_token_time)
        sample.last_token_time = now
        return is_first

    # ------------------------------------------------------------ health
    async def _watch_loop(self) -> None:
        last = time.monotonic()
        while self.dead_reason is None:
            await asyncio.sleep(TICK_SECONDS)
            now = time.monotonic()
            reason = self._watchdog.tick(now - last)
            last = now
            if reason is not None:
                self._die(reason)

    def _die(self, reason: str) -> None:
        """The engine is dead: end everything that waits for it. Only the first reason counts."""
        if self.dead_reason is not None or self._is_closing:
            return
        self.dead_reason = f"The engine process is dead: {reason}."
        logger.error("%s", self.dead_reason)
        self.abort_all(EngineDead(self.dead_reason))
        self._calls.fail(EngineDead(self.dead_reason))
        if self._on_dead is not None:
            self._on_dead(self.dead_reason)
