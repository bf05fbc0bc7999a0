"""Who computes a step. The only door from the core to the worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.config import EngineConfig
from octavo.messages import EngineInfo
from octavo.step import ModelRunnerOutput, SchedulerOutput

if TYPE_CHECKING:
    from octavo.worker.worker import Worker

# How torch's allocators say it; they raise subclasses of RuntimeError, or RuntimeError itself.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Executor(Protocol):
    """`load` once, then `submit` and `collect` step by step, all in one thread.

    `submit` begins a step and returns what `collect` wants for its answer; steps are collected in the order in which
    they were submitted. Where EngineInfo.plans_ahead, a second may be submitted before the first is collected.

    `submit` raises MemoryError when the step did not fit: nothing of it counts, and the next may be tried. Any other
    exception of the two means that the worker's state is lost.
    """

    def load(self) -> EngineInfo: ...

    def submit(self, plan: SchedulerOutput) -> Any: ...

    def collect(self, step: Any) -> ModelRunnerOutput: ...


class UniprocExecutor:
    """One worker, in this process and thread."""

    def __init__(self, config: EngineConfig, on_phase: Callable[[str, str], None]) -> None:
        self._config = config
        self._on_phase = on_phase
        self._worker: Worker | None = None

    def load(self) -> EngineInfo:
        self._on_phase("import", "")
        start = time.monotonic()
        # Here and not above: it brings in torch, seconds in which the process could not answer otherwise.
        from octavo.worker.worker import Worker

        import_seconds = time.monotonic() - start
        self._worker = Worker(self._config, self._on_phase)
        info = self._worker.load()
        return msgspec.structs.replace(info, load_seconds={"import": import_seconds, **info.load_seconds})

    def submit(self, plan: SchedulerOutput) -> Any:
        assert self._worker is not None, "load() first"
        try:
            return self._worker.submit(plan)
        except RuntimeError as exc:
            if any(text in str(exc).lower() for text in _OUT_OF_MEMORY):
                raise MemoryError(str(exc)) from exc
            raise

    def collect(self, step: Any) -> ModelRunnerOutput:
        assert self._worker is not None, "load() first"
        return self._worker.collect(step)
