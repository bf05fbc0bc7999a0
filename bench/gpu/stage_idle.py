"""How long the GPU waits between steps of decoding: the engine in this process, under torch's profiler."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from gpu import timeline
from gpu.context import Context
from gpu.running import exactly, settings
from gpu.workloads import Work, random_works
from octavo.core.engine_core import EngineCore
from octavo.core.executors.executor import UniprocExecutor
from octavo.offline.llm import offline_config
from octavo.wire.messages import AddRequest, EngineCoreOutputs, Shutdown

STREAMS: Final = 64
#: The load, and the steps that are measured: contexts are short, so that a step is.
_PROMPT, _OUTPUT = 128, 600
_FIRST_STEP, _NUM_STEPS = 200, 300
#: Of the profiled run, the part that is looked at, as shares of its time: no prompts in it, and not the end.
_WINDOW: Final = (0.4, 0.9)


class _Connection:
    """The engine's other side: requests go into the inbox, and what is sent back is only counted."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        self.num_steps = 0
        self.num_missing = 0  # tokens that are still to come

    def send(self, message: Any, *, droppable: bool = False) -> None:
        if isinstance(message, EngineCoreOutputs):
            self.num_steps += 1
            self.num_missing -= sum(len(output.new_token_ids) for output in message.outputs)


def run(context: Context) -> None:
    model = context.model("Qwen3-0.6B")
    config = offline_config(str(model), settings(context, max_model_len=4096)).engine
    executor = UniprocExecutor(config, lambda name, detail: None)
    info = executor.load()
    engine = _Engine(EngineCore(config, info, executor, connection := _Connection()), connection)
    streams, output = (4, 60) if context.is_tiny else (STREAMS, _OUTPUT)
    works = random_works([(_PROMPT, output)] * streams, info.vocab_size, 64)
    for _ in range(2):  # the first time compiles and captures
        engine.begin(works)
        engine.wait_steps(20 if context.is_tiny else _FIRST_STEP)
        start, steps = time.perf_counter(), connection.num_steps
        engine.wait_steps(20 if context.is_tiny else _NUM_STEPS)
        step = (time.perf_counter() - start) / (connection.num_steps - steps)
        engine.wait_end()
    note = f"{streams} streams, in {_PROMPT}; the weights alone, of the memory's time"
    rate = 2 * context.shape("Qwen3-0.6B").step_params / step
    context.row("step of decoding", 1e6 * step, "us", note=note, **context.bandwidth_share(rate))
    if not context.is_tiny:
        _profiled(context, engine, works, step)
    engine.stop()


class _Engine:
    """The engine's loop in a thread."""

    def __init__(self, core: EngineCore, connection: _Connection) -> None:
        self._core = core
        self._connection = connection
        self._failure: BaseException | None = None
        self._num_requests = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._core.run()
        except BaseException as error:  # noqa: BLE001  # told by whoever waits
            self._failure = error

    def begin(self, works: list[Work]) -> None:
        self._connection.num_missing += sum(work.output_len for work in works)
        for work in works:
            self._num_requests += 1
            params, now = exactly(work.output_len), time.monotonic()
            self._connection.inbox.put(AddRequest(self._num_requests, work.prompt, params, arrival_time=now))

    def wait_steps(self, steps: int) -> None:
        target = self._connection.num_steps + steps
        self._wait(lambda: self._connection.num_steps >= target)

    def wait_end(self) -> None:
        self._wait(lambda: self._connection.num_missing <= 0)

    def _wait(self, is_done: Callable[[], bool]) -> None:
        while not is_done():
            if self._failure is not None:
                raise self._failure
            time.sleep(0.001)

    def stop(self) -> None:
        self._connection.inbox.put(Shutdown())
        self._thread.join(10)


def _profiled(context: Context, engine: _Engine, works: list[Work], step: float) -> None:
    """`step`: its seconds without the profiler."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        engine.begin(works)
        engine.wait_end()
        seconds = time.perf_counter() - start
        torch.cuda.synchronize()
    file = context.directory / "idle.json"
    profiler.export_chrome_trace(str(file))
    busy = timeline.busy_intervals(json.loads(Path(file).read_text()))
    found = timeline.idle(timeline.part(busy, *_WINDOW))
    if found is None:
        context.row("GPU idle between steps", status="failed", note="the profiler saw nothing run on the GPU")
        return
    note = (
        f"{found.num_gaps} gaps above {timeline.GAP_US:.0f} us in {found.seconds:.3f} s, under the profiler: with it "
        f"a step takes {1e6 * seconds / works[0].output_len:.0f} us, without {1e6 * step:.0f}"
    )
    context.row("GPU idle between steps", 100 * found.long_gaps, "%", note=note, goal=3, less=True)
    context.row("GPU idle, gaps between kernels too", 100 * found.all_gaps, "%", note="the profiler widens them")
