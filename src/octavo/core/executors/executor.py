"""Who computes a step. The only door from the core to the worker."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.base.config import EngineConfig
from octavo.wire.messages import AdapterInfo, EngineInfo
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput, TokenMasks

if TYPE_CHECKING:
    from octavo.worker.worker import Worker

# How torch's allocators say it; they raise subclasses of RuntimeError, or RuntimeError itself.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Executor(Protocol):
    """`load` once, then `submit`, `submit_masks` and `collect` step by step, all in one thread.

    `submit` begins a step and returns what names it in the other two. Where the plan has `masked_slots`, the step
    samples when `submit_masks` brings their masks, which must be the next call. `collect` waits for the answer; steps
    are collected in the order in which they were submitted. Where EngineInfo.plans_ahead, a second may be submitted
    before the first is collected.

    Plans, masks and answers are plain data: who computes may be in another process.

    `submit` and `submit_masks` raise MemoryError when the step did not fit: nothing of it counts, and the next may be
    tried. Any other exception means that the worker's state is lost.
    """

    def load(self) -> EngineInfo: ...

    def submit(self, plan: SchedulerOutput) -> Any: ...

    def submit_masks(self, step: Any, masks: TokenMasks) -> None: ...

    def collect(self, step: Any) -> ModelRunnerOutput: ...

    def read_adapter(self, key: str, path: str) -> AdapterInfo:
        """Have the host keep an adapter, which plans may name then. May be called in any thread. Raises
        CheckpointError."""
        ...

    def drop_adapter(self, key: str) -> None:
        """No plan names it from here on."""
        ...

    def start_profile(self) -> None:
        """Record what the device and its libraries do, until `stop_profile`. Between two steps only."""
        ...

    def stop_profile(self, path: str) -> None:
        """Write the recording to `path`, a trace of Chrome's form. Raises OSError."""
        ...

    def sleep(self, level: int) -> None:
        """Give back the KV cache and what steps need; 2: the weights too. No step is under way. Raises DeviceError."""

    def wake_up(self) -> None:
        """Be as after `load`, with an empty KV cache. Raises what `load` raises; it may be tried again then."""


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
        with _memory_errors():
            return self._loaded().submit(plan)

    def submit_masks(self, step: Any, masks: TokenMasks) -> None:
        with _memory_errors():
            self._loaded().submit_masks(step, masks)

    def collect(self, step: Any) -> ModelRunnerOutput:
        return self._loaded().collect(step)

    def read_adapter(self, key: str, path: str) -> AdapterInfo:
        return self._loaded().read_adapter(key, path)

    def drop_adapter(self, key: str) -> None:
        self._loaded().drop_adapter(key)

    def start_profile(self) -> None:
        self._loaded().start_profile()

    def stop_profile(self, path: str) -> None:
        self._loaded().stop_profile(path)

    def sleep(self, level: int) -> None:
        self._loaded().sleep(level)

    def wake_up(self) -> None:
        with _memory_errors():
            self._loaded().wake_up()

    def _loaded(self) -> Worker:
        assert self._worker is not None, "load() first"
        return self._worker


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Make MemoryError of what torch raises instead."""
    try:
        yield
    except RuntimeError as exc:
        if any(text in str(exc).lower() for text in _OUT_OF_MEMORY):
            raise MemoryError(str(exc)) from exc
        raise
