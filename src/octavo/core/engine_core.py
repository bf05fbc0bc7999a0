"""The engine's loop: inbox, plan, step, outputs. It knows neither sockets nor the model."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from octavo.base.config import EngineConfig
from octavo.base.errors import OctavoError, ServerError
from octavo.core.adapters import AdapterRead, KeptAdapters
from octavo.core.clients import ClientGone
from octavo.core.drafts import Drafter
from octavo.core.executors.executor import Executor
from octavo.core.faults import fault
from octavo.core.grammar.structured import Compiler, GrammarReady, Matcher, StructuredOutputs
from octavo.core.graph_steps import GraphSteps
from octavo.core.profile import Profile
from octavo.core.scheduler.scheduler import Scheduler
from octavo.core.step_trace import StepMoments
from octavo.wire.messages import (
    HEARTBEAT_INTERVAL,
    Abort,
    AddRequest,
    Call,
    CallResult,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineInfo,
    Heartbeat,
    SchedulerStats,
    Shutdown,
    StepSeconds,
    Vocabulary,
)
from octavo.wire.step import SchedulerOutput

logger = logging.getLogger("octavo.core")


class EngineConnection(Protocol):
    """What the loop needs of `transport.BlockingConnection`: None in the inbox means that the peer is gone."""

    @property
    def inbox(self) -> SimpleQueue[Any]: ...

    def send(self, message: Any, *, droppable: bool = False) -> None: ...


#: Most log probabilities in one frame, but for one output that has more: a frame's size is bounded.
MAX_FRAME_SCORES = 1_000_000


def frames_of(outputs: list[EngineCoreOutput]) -> Iterator[list[EngineCoreOutput]]:
    """The outputs of a step, nearly always in one piece."""
    start = num_scores = 0
    for end, output in enumerate(outputs, 1):
        if output.logprobs is None and output.prompt_logprobs is None:
            continue
        for entries in (output.logprobs, output.prompt_logprobs):
            num_scores += sum(1 + len(entry.top_ids) for entry in entries or ())
        if num_scores > MAX_FRAME_SCORES and end < len(outputs):
            yield outputs[start:end]
            start, num_scores = end, 0
    yield outputs[start:]


class _Step(NamedTuple):
    """One that was submitted. Times are time.monotonic() seconds."""

    plan: SchedulerOutput
    of_worker: Any
    mask_errors: dict[int, str]  # slots whose mask failed
    began: float
    planned: float
    launched: float


class EngineCore:
    """`run` returns after Shutdown or when the peer is gone. What it raises is fatal: the process must end."""

    def __init__(
        self,
        config: EngineConfig,
        info: EngineInfo,
        executor: Executor,
        connection: EngineConnection,
        compiler: Compiler | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        """`compiler`: of grammars; a test's, or the real one. `drafter`: of tokens that are verified; None: none is."""
        self.scheduler = Scheduler(config, info, drafter)
        self._executor = executor
        self._inbox = connection.inbox
        self.structured = StructuredOutputs(info.vocab_size + info.extra_tokens, self._inbox.put, compiler)
        most_prompts = config.prompt_adapter.max_prompt_adapters
        self.adapters = KeptAdapters(
            executor, self._inbox.put, config.lora.num_kept, self._adapters_in_use, most_prompts
        )
        self._send = connection.send
        self._num_ahead = 1 if info.plans_ahead else 0  # steps that may be under way when an answer is taken in
        self._in_flight: deque[_Step] = deque()  # submitted and not collected, oldest first
        self._is_timed = bool(config.step_times.collect_detailed_traces)
        self._profile: Profile | None = None
        self._outputs: list[EngineCoreOutput] = []  # to be sent with the next frame
        self._num_pending_told = 0  # requests waiting for their grammar or adapter, as of the last frame
        self._graph_steps = GraphSteps()
        self._num_steps = 0
        self._step_started = 0.0  # time.monotonic(), 0.0 between steps; read by the heartbeat thread
        self._stopped = threading.Event()

    def run(self) -> None:
        threading.Thread(target=self._beat, name="octavo-heartbeat", daemon=True).start()
        try:
            while self._drain_inbox():
                if self.scheduler.has_work or self._in_flight:
                    self._step()
                self.adapters.read_more()
                # Refused or aborted, or one more that waits for its grammar, and no step to go with.
                if self._outputs or self._num_pending != self._num_pending_told:
                    self._send_outputs()
        finally:
            self._stopped.set()

    # ------------------------------------------------------------------------------------------------------ a step
    def _step(self) -> None:
        """Submit one step or take in the answer of one, or both; with the answer goes a frame.

        Where the device computes beside the host, the next step is under way when an answer is taken in: planning,
        bookkeeping and sending cost it nothing.
        """
        is_submitted = (not self._in_flight or self.scheduler.can_plan_ahead) and self._submit()
        if self._in_flight and (len(self._in_flight) > self._num_ahead or not is_submitted):
            self._collect()

    def _submit(self) -> bool:
        """Plan the next step and hand it to the worker. False: nothing can be planned before a step has ended."""
        scheduler = self.scheduler
        began = time.monotonic()
        plan = scheduler.schedule()
        planned = time.monotonic()
        if not plan.total_num_scheduled_tokens:
            if not self._in_flight:
                raise RuntimeError(f"requests wait but nothing can be scheduled: {scheduler.stats()}")
            return False
        if not self._in_flight:
            self._step_started = time.monotonic()
        self.structured.start_masks(plan, scheduler.slots)
        mask_errors: dict[int, str] = {}
        try:
            fault("step")
            step = self._executor.submit(plan)
            if plan.masked_slots:
                masks, mask_errors = self.structured.finish_masks()
                self._executor.submit_masks(step, masks)
        except MemoryError as exc:
            self.structured.finish_masks()
            logger.exception("Out of memory in a step of %d tokens.", plan.total_num_scheduled_tokens)
            while self._in_flight:  # what was computed before is not lost
                self._collect()
            message = f"The server ran out of memory while it computed this request: {exc}"
            self._outputs += scheduler.fail_step(plan, message)
            self._end_step()
            return False
        self._in_flight.append(_Step(plan, step, mask_errors, began, planned, time.monotonic()))
        return True

    def _collect(self) -> None:
        """Take in the answer to the oldest step that is under way."""
        step, waited = self._in_flight.popleft(), time.monotonic()
        result = self._executor.collect(step.of_worker)
        answered = time.monotonic()
        result.errors.update(step.mask_errors)
        self._graph_steps.count(result.graph)
        if self._is_timed:
            planning = StepSeconds(step.planned - step.began)
            result.seconds = planning if result.seconds is None else result.seconds.plus(planning)
        members = self.scheduler.next_members() if self._profile is not None else ()
        self._outputs += self.scheduler.update(step.plan, result)
        if self._profile is not None:
            times = StepMoments(step.began, step.planned, step.launched, waited, answered, time.monotonic())
            self._profile.trace.on_step(step.plan, members, self._stats(), times)
        self._end_step()

    def _end_step(self) -> None:
        self._num_steps += 1
        self._step_started = time.monotonic() if self._in_flight else 0.0
        self._send_outputs()

    def _send_outputs(self) -> None:
        outputs, self._outputs = self._outputs, []
        self._num_pending_told = self._num_pending
        stats, now = self._stats(), time.monotonic()
        for part in frames_of(outputs):
            self._send(EngineCoreOutputs(part, stats, now))

    def _stats(self) -> SchedulerStats:
        """The scheduler's, with the requests that it has not seen because their grammar or adapter is not ready,
        and how steps were launched."""
        stats, num_pending, graph_steps = self.scheduler.stats(), self._num_pending, self._graph_steps.totals
        if not num_pending and not graph_steps:
            return stats
        return msgspec.structs.replace(
            stats,
            num_waiting=stats.num_waiting + num_pending,
            num_deferred=num_pending,
            graph_steps=dict(graph_steps),
        )

    # --------------------------------------------------------------------------------------------------- the inbox
    def _drain_inbox(self) -> bool:
        """Handle what has arrived; wait for something when there is nothing to compute. False: the loop is over."""
        inbox = self._inbox
        idle = not self.scheduler.has_work and not self._in_flight
        while idle or not inbox.empty():
            idle = False
            message = inbox.get()
            if isinstance(message, AddRequest):
                self._receive(message)
            elif isinstance(message, GrammarReady):
                self._on_grammar(message)
            elif isinstance(message, AdapterRead):
                self.adapters.on_read(message)
            elif isinstance(message, Vocabulary):
                self.structured.set_vocabulary(message)
            elif isinstance(message, Abort):
                self._abort(message.request_ids)
            elif isinstance(message, ClientGone):
                self._abort(message.owned(self._request_ids()))
            elif isinstance(message, Call) and message.method == "load_adapter":
                self._load_adapter(message)
            elif isinstance(message, Call):
                self._send(self._call(message))
            elif isinstance(message, Shutdown) or message is None:
                self._abort(self._request_ids())
                self._send_outputs()
                return False
        return True

    def _request_ids(self) -> list[int]:
        """All requests, those too that the scheduler has not seen yet."""
        return [*self.structured.pending_requests, *self.adapters.waiting_requests, *self.scheduler.requests]

    def _abort(self, request_ids: list[int]) -> None:
        self._outputs += self.structured.abort(request_ids)
        self._outputs += self._abort_waiting(request_ids)
        self._outputs += self.scheduler.abort(request_ids)

    def _receive(self, message: AddRequest) -> None:
        if message.request_id in self.scheduler.requests or self._is_pending(message.request_id):
            # An error would end the one that runs under this id.
            logger.error("Request id %d came twice; the second is ignored.", message.request_id)
        elif message.params.grammar is None:
            self._add(message)
        else:
            self.structured.submit(message)

    def _on_grammar(self, ready: GrammarReady) -> None:
        message = self.structured.take(ready)
        if message is None:  # aborted meanwhile
            return
        if ready.error is not None:
            self._outputs.append(EngineCoreOutput(ready.request_id, [], "error", error=ready.error))
        else:
            self._add(message, ready.matcher)

    @property
    def _num_pending(self) -> int:
        return self.structured.num_pending + self.adapters.num_waiting

    def _is_pending(self, request_id: int) -> bool:
        return self.structured.is_pending(request_id) or self.adapters.is_waiting(request_id)

    def _abort_waiting(self, request_ids: list[int]) -> list[EngineCoreOutput]:
        return [EngineCoreOutput(request_id, [], "abort") for request_id in self.adapters.forget(request_ids)]

    def _adapters_in_use(self) -> set[str]:
        return {request.adapter for request in self.scheduler.requests.values()}

    def _load_adapter(self, message: Call) -> None:
        """The call's result, an `AdapterInfo`, comes when the host keeps the adapter, or cannot."""
        key, path, is_prompt = message.args
        if not self.scheduler.takes_adapters:
            error = "The engine was started without --enable-lora and without --enable-prompt-adapter."
            self._send(CallResult(message.call_id, error=error))
            return
        self.adapters.wait(
            key,
            path,
            -1 - message.call_id,
            lambda error: self._send(CallResult(message.call_id, self.adapters.info(key), error=error)),
            is_prompt=is_prompt,
        )

    def _add(self, message: AddRequest, matcher: Matcher | None = None) -> None:
        """Queue a request, or have it wait until the host keeps its adapter."""
        if not message.adapter or not self.scheduler.takes_adapters:
            self._queue(message, matcher)
            return

        def go_on(error: str | None) -> None:
            if error is None:
                error = self.adapters.change(message)
            if error is None:
                self._queue(message, matcher)
            else:
                self._outputs.append(EngineCoreOutput(message.request_id, [], "error", error=error, is_of_adapter=True))

        if self.adapters.has(message.adapter):
            go_on(None)
            return
        is_prompt = message.num_virtual_tokens > 0
        self.adapters.wait(message.adapter, message.adapter_path, message.request_id, go_on, is_prompt=is_prompt)

    def _queue(self, message: AddRequest, matcher: Matcher | None) -> None:
        try:
            fault("add")
            output = self.scheduler.add(message, matcher)
        except Exception as exc:  # one request must not end the others
            logger.exception("Request %d could not be added.", message.request_id)
            output = EngineCoreOutput(message.request_id, [], "error", error=f"Internal error: {type(exc).__name__}.")
        if output is not None:
            self._outputs.append(output)

    # ------------------------------------------------------------------------------------------------------- calls
    def _call(self, message: Call) -> CallResult:
        method = self.CALLS.get(message.method)
        if method is None:
            return CallResult(message.call_id, error=f"There is no method {message.method!r}.")
        try:
            return CallResult(message.call_id, method(self, *message.args))
        except OctavoError as exc:
            return CallResult(message.call_id, error=exc.message)
        except MemoryError as exc:
            return CallResult(message.call_id, error=f"There is not enough memory: {exc}")
        except Exception as exc:  # the caller's mistake, such as a wrong number of arguments
            logger.exception("The call of %s failed.", message.method)
            return CallResult(message.call_id, error=f"{type(exc).__name__}: {exc}")

    def _ping(self) -> str:
        return "pong"

    def _call_stats(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self._stats())

    def _reset_prefix_cache(self) -> bool:
        self.scheduler.reset_prefix_cache()
        return True

    def _start_profile(self, directory: str, with_torch: bool) -> None:
        """Record steps, and what torch does if `with_torch`, for files in `directory`. Raises RuntimeError while
        another recording runs, and OSError."""
        if self._profile is not None:
            raise RuntimeError("a profile is being recorded already")
        self._profile = Profile(self._executor, directory, with_torch=with_torch)

    def _stop_profile(self) -> dict[str, Any]:
        """Write what was recorded: its files, and the number of steps. Raises OSError."""
        if self._profile is None:
            raise RuntimeError("no profile is being recorded")
        profile, self._profile = self._profile, None
        return profile.write()

    def _sleep(self, level: int) -> bool:
        """1 or 2, as `worker.residence` has it. The client has ended all requests, and sends none before `wake_up`."""
        if self.scheduler.has_work or self._num_pending:
            raise ServerError("The engine cannot sleep: it has requests.")
        while self._in_flight:  # a step that was planned before its request ended
            self._collect()
        self._executor.sleep(level)
        self.scheduler.forget_worker()
        return True

    def _wake_up(self) -> bool:
        self._executor.wake_up()
        return True

    def _drop_adapter(self, key: str) -> None:
        self.adapters.retire(key)

    #: The methods that a `Call` may name, beside "load_adapter".
    CALLS: ClassVar[dict[str, Callable[..., Any]]] = {
        "ping": _ping,
        "stats": _call_stats,
        "drop_adapter": _drop_adapter,
        "reset_prefix_cache": _reset_prefix_cache,
        "start_profile": _start_profile,
        "stop_profile": _stop_profile,
        "sleep": _sleep,
        "wake_up": _wake_up,
    }

    # --------------------------------------------------------------------------------------------------- heartbeat
    def _beat(self) -> None:
        """Runs in its own thread: a long step delays no heartbeat, and says how long it has been running."""
        while not self._stopped.wait(HEARTBEAT_INTERVAL):
            started = self._step_started
            step_seconds = time.monotonic() - started if started else 0.0
            self._send(Heartbeat(self._num_steps, step_seconds, self.scheduler.has_work), droppable=True)
