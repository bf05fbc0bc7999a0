"""Is the engine process alive? Decided from its heartbeats and, when they stop, from a look at the process.

A machine may be so busy that heartbeats come late; an engine that gets CPU time, or waits for it, is given ten times
the limit. One that is stopped, or does nothing at all, is dead. Quiet time is counted in the watcher's own ticks,
each for at most two intervals: when the API process itself was held up, the heartbeats wait in the socket, and its
own lateness is not held against the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from octavo.base.config import ParallelConfig
from octavo.wire.messages import Heartbeat

#: Seconds between two calls of `Watchdog.tick`.
TICK_SECONDS = 0.1
#: Seconds that a lost connection waits for the process's exit code, which makes the better message.
EXIT_WAIT_SECONDS = 0.3
#: A busy engine may be quiet for this many times the heartbeat timeout.
BUSY_FACTOR = 10


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A look at a process. A zombie is gone."""

    is_gone: bool = False
    is_stopped: bool = False  # by a signal or a debugger
    is_runnable: bool = False  # runs, or waits for a CPU or a disk
    cpu_seconds: float = 0.0  # user and system time of all threads


class EngineHandle(Protocol):
    """`launch.engine_process.EngineProcess`, as far as the client looks at it."""

    def probe(self) -> ProcessState: ...

    def exit_reason(self) -> str | None:
        """How the process ended; None while it runs."""
        ...


async def exit_reason(process: EngineHandle) -> str | None:
    """How the process ended whose connection is lost: the socket closes a moment before the exit code is there."""
    deadline = time.monotonic() + EXIT_WAIT_SECONDS
    while True:
        reason = process.exit_reason()
        if reason is not None or time.monotonic() > deadline:
            return reason
        await asyncio.sleep(0.01)


class Watchdog:
    """Knows no clock and no event loop: it is told of messages and of the time that passed."""

    def __init__(self, config: ParallelConfig, probe: Callable[[], ProcessState] | None = None) -> None:
        self._timeout = config.engine_heartbeat_timeout
        self._step_timeout = config.engine_step_timeout
        self._probe = probe
        self._quiet = 0.0  # seconds since the last message
        self._idle = 0.0  # of these, since the process last used a CPU
        self._cpu_seconds = 0.0
        self._beat: Heartbeat | None = None
        self._stuck = 0.0  # seconds with work and without a finished step

    def heard(self) -> None:
        """A message came."""
        self._quiet = self._idle = 0.0

    def beat(self, heartbeat: Heartbeat) -> None:
        """A heartbeat came."""
        last, self._beat = self._beat, heartbeat
        if last is None or last.num_steps != heartbeat.num_steps or not heartbeat.has_work:
            self._stuck = 0.0

    def tick(self, elapsed: float) -> str | None:
        """`elapsed` seconds passed since the last call. Returns why the engine is dead, or None."""
        counted = min(elapsed, 2 * TICK_SECONDS)
        self._quiet += counted
        reason = self._check_steps(counted)
        if reason is None and self._quiet > self._timeout / 2:
            reason = self._check_silence(counted)
        return reason

    def _check_steps(self, counted: float) -> str | None:
        beat = self._beat
        if beat is None:
            return None
        if beat.step_seconds > self._step_timeout:
            return f"a step has been running for {beat.step_seconds:.0f} s (--engine-step-timeout)"
        if beat.has_work:
            self._stuck += counted
        if self._stuck > 2 * self._step_timeout:
            return f"there is work, but no step ended for {self._stuck:.0f} s"
        return None

    def _check_silence(self, counted: float) -> str | None:
        silence = f"no sign of life for {self._quiet:.1f} s"
        if self._probe is None:
            return silence if self._quiet > self._timeout else None
        state = self._probe()
        if state.is_gone:
            return "the process is gone"
        if state.is_stopped:
            # Sooner than a silence without a cause: nothing will come.
            return f"{silence}: the process is stopped" if self._quiet > 0.75 * self._timeout else None
        if state.is_runnable or state.cpu_seconds > self._cpu_seconds:
            self._idle = 0.0
        else:
            self._idle += counted
        self._cpu_seconds = state.cpu_seconds
        if self._quiet > self._timeout and self._idle > 0.4 * self._timeout:
            return f"{silence}, and it uses no CPU"
        return silence if self._quiet > BUSY_FACTOR * self._timeout else None
