"""The engine's loop: inbox, plan, step, outputs. It knows neither sockets nor the model."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, ClassVar, Protocol

import msgspec

from octavo.config import EngineConfig
from octavo.core.executor import Executor
from octavo.core.faults import fault
from octavo.core.scheduler import Scheduler
from octavo.core.structured import Compiler, GrammarReady, Matcher, StructuredOutputs
from octavo.messages import (
    HEARTBEAT_INTERVAL,
    Abort,
    AddRequest,
    Call,
    CallResult,
    EngineCoreOutputs,
    EngineInfo,
    Heartbeat,
    RequestOutput,
    SchedulerStats,
    Shutdown,
    Vocabulary,
)

logger = logging.getLogger("octavo.core")


class Connection(Protocol):
    """What the loop needs of `transport.BlockingConnection`: None in the inbox means that the peer is gone."""

    @property
    def inbox(self) -> SimpleQueue[Any]: ...

    def send(self, message: Any, *, droppable: bool = False) -> None: ...


#: Most log probabilities in one frame, but for one output that has more: a frame's size is bounded.
MAX_FRAME_SCORES = 1_000_000


def frames_of(outputs: list[RequestOutput]) -> Iterator[list[RequestOutput]]:
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


class EngineCore:
    """`run` returns after Shutdown or when the peer is gone. What it raises is fatal: the process must end."""

    def __init__(
        self,
        config: EngineConfig,
        info: EngineInfo,
        executor: Executor,
        connection: Connection,
        compiler: Compiler | None = None,
    ) -> None:
        """`compiler`: of grammars; a test's, or the real one."""
        self.scheduler = Scheduler(config, info)
        self._executor = executor
        self._inbox = connection.inbox
        self.structured = StructuredOutputs(info.vocab_size, self._inbox.put, compiler)
        self._send = connection.send
        self._outputs: list[RequestOutput] = []  # to be sent with the next frame
        self._num_pending_told = 0  # requests waiting for their grammar, as of the last frame
        self._num_steps = 0
        self._step_started = 0.0  # time.monotonic(), 0.0 between steps; read by the heartbeat thread
        self._stopped = threading.Event()

    def run(self) -> None:
        threading.Thread(target=self._beat, name="octavo-heartbeat", daemon=True).start()
        try:
            while self._drain_inbox():
                if self.scheduler.has_work:
                    self._step()
                # Refused or aborted, or one more that waits for its grammar, and no step to go with.
                if self._outputs or self.structured.num_pending != self._num_pending_told:
                    self._send_outputs()
        finally:
            self._stopped.set()

    # ------------------------------------------------------------------------------------------------------ a step
    def _step(self) -> None:
        """One step, one frame. While the worker computes, the writer thread sends the frame before."""
        scheduler = self.scheduler
        plan = scheduler.schedule()
        if not plan.total_num_scheduled_tokens:
            raise RuntimeError(f"requests wait but nothing can be scheduled: {scheduler.stats()}")
        self._step_started = time.monotonic()
        self.structured.start_masks(plan, scheduler.slots)
        try:
            fault("step")
            result = self._executor.execute(plan)
        except MemoryError as exc:
            self.structured.finish_masks()
            logger.exception("Out of memory in a step of %d tokens.", plan.total_num_scheduled_tokens)
            message = f"The server ran out of memory while it computed this request: {exc}"
            self._outputs += scheduler.fail_step(plan, message)
        else:
            result.errors.update(self.structured.finish_masks())
            self._outputs += scheduler.update(plan, result)
        self._num_steps += 1
        self._step_started = 0.0
        self._send_outputs()

    def _send_outputs(self) -> None:
        outputs, self._outputs = self._outputs, []
        self._num_pending_told = self.structured.num_pending
        stats, now = self._stats(), time.monotonic()
        for part in frames_of(outputs):
            self._send(EngineCoreOutputs(part, stats, now))

    def _stats(self) -> SchedulerStats:
        """The scheduler's, with the requests that it has not seen because their grammar is not ready."""
        stats, num_pending = self.scheduler.stats(), self.structured.num_pending
        return msgspec.structs.replace(stats, num_waiting=stats.num_waiting + num_pending) if num_pending else stats

    # --------------------------------------------------------------------------------------------------- the inbox
    def _drain_inbox(self) -> bool:
        """Handle what has arrived; wait for something when there is nothing to compute. False: the loop is over."""
        inbox = self._inbox
        idle = not self.scheduler.has_work
        while idle or not inbox.empty():
            idle = False
            message = inbox.get()
            if isinstance(message, AddRequest):
                self._receive(message)
            elif isinstance(message, GrammarReady):
                self._on_grammar(message)
            elif isinstance(message, Vocabulary):
                self.structured.set_vocabulary(message)
            elif isinstance(message, Abort):
                self._outputs += self.structured.abort(message.request_ids)
                self._outputs += self.scheduler.abort(message.request_ids)
            elif isinstance(message, Call):
                self._send(self._call(message))
            elif isinstance(message, Shutdown) or message is None:
                self._outputs += self.structured.abort_all()
                self._outputs += self.scheduler.abort(list(self.scheduler.requests))
                self._send_outputs()
                return False
        return True

    def _receive(self, message: AddRequest) -> None:
        if message.request_id in self.scheduler.requests or self.structured.is_pending(message.request_id):
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
            self._outputs.append(RequestOutput(ready.request_id, [], "error", error=ready.error))
        else:
            self._add(message, ready.matcher)

    def _add(self, message: AddRequest, matcher: Matcher | None = None) -> None:
        try:
            fault("add")
            output = self.scheduler.add(message, matcher)
        except Exception as exc:  # one request must not end the others
            logger.exception("Request %d could not be added.", message.request_id)
            output = RequestOutput(message.request_id, [], "error", error=f"Internal error: {type(exc).__name__}.")
        if output is not None:
            self._outputs.append(output)

    # ------------------------------------------------------------------------------------------------------- calls
    def _call(self, message: Call) -> CallResult:
        method = self.CALLS.get(message.method)
        if method is None:
            return CallResult(message.call_id, error=f"There is no method {message.method!r}.")
        try:
            return CallResult(message.call_id, method(self, *message.args))
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

    #: The methods that a `Call` may name.
    CALLS: ClassVar[dict[str, Callable[..., Any]]] = {
        "ping": _ping,
        "stats": _call_stats,
        "reset_prefix_cache": _reset_prefix_cache,
    }

    # --------------------------------------------------------------------------------------------------- heartbeat
    def _beat(self) -> None:
        """Runs in its own thread: a long step delays no heartbeat, and says how long it has been running."""
        while not self._stopped.wait(HEARTBEAT_INTERVAL):
            started = self._step_started
            step_seconds = time.monotonic() - started if started else 0.0
            self._send(Heartbeat(self._num_steps, step_seconds, self.scheduler.has_work), droppable=True)
