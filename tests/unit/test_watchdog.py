"""When does an engine count as dead? In simulated time."""

from __future__ import annotations

import pytest

from octavo.base.config import ParallelConfig
from octavo.client.watchdog import TICK_SECONDS, ProcessState, Watchdog
from octavo.wire.messages import Heartbeat

CONFIG = ParallelConfig(engine_heartbeat_timeout=2.0, engine_step_timeout=30.0)


def seconds_to_death(watchdog: Watchdog, limit: float = 60.0) -> tuple[float, str] | None:
    ticks = 0
    while ticks * TICK_SECONDS < limit:
        ticks += 1
        reason = watchdog.tick(TICK_SECONDS)
        if reason is not None:
            return ticks * TICK_SECONDS, reason
    return None


def found(watchdog: Watchdog) -> tuple[float, str]:
    death = seconds_to_death(watchdog)
    assert death is not None
    return death


def test_a_process_that_does_nothing_is_dead_after_the_timeout() -> None:
    seconds, reason = found(Watchdog(CONFIG, ProcessState))
    assert 2.0 <= seconds <= 2.2 and "no CPU" in reason


def test_a_stopped_process_is_found_sooner() -> None:
    seconds, reason = found(Watchdog(CONFIG, lambda: ProcessState(is_stopped=True)))
    assert 1.0 < seconds < 1.75 and "stopped" in reason


def test_a_process_that_is_gone_is_found_at_the_first_look() -> None:
    seconds, _ = found(Watchdog(CONFIG, lambda: ProcessState(is_gone=True)))
    assert seconds <= 1.2


@pytest.mark.parametrize("is_runnable", [True, False])
def test_a_busy_process_gets_ten_times_as_long(is_runnable: bool) -> None:
    """It waits for a CPU, or gets one now and then."""
    cpu = 0.0

    def probe() -> ProcessState:
        nonlocal cpu
        cpu += 0.0 if is_runnable else 0.01
        return ProcessState(is_runnable=is_runnable, cpu_seconds=cpu)

    seconds, _ = found(Watchdog(CONFIG, probe))
    assert 20.0 <= seconds <= 20.3


def test_a_process_that_was_busy_and_then_hangs_is_dead_soon() -> None:
    states = [ProcessState(cpu_seconds=float(i)) for i in range(50)]
    watchdog = Watchdog(CONFIG, lambda: states.pop(0) if len(states) > 1 else states[0])
    seconds, _ = found(watchdog)
    assert 6.0 <= seconds <= 8.0


def test_our_own_lateness_is_not_held_against_the_engine() -> None:
    watchdog = Watchdog(CONFIG, lambda: ProcessState(is_stopped=True))
    for _ in range(7):  # the event loop stood still for a minute, seven times, and no message could be read
        assert watchdog.tick(60.0) is None
    watchdog.heard()
    assert watchdog.tick(60.0) is None


def test_a_message_starts_the_count_again() -> None:
    watchdog = Watchdog(CONFIG, ProcessState)
    for _ in range(100):
        assert watchdog.tick(TICK_SECONDS * 9) is None
        watchdog.heard()


def test_without_a_look_at_the_process_silence_alone_decides() -> None:
    seconds, reason = found(Watchdog(CONFIG))
    assert 2.0 <= seconds <= 2.2 and "no sign of life" in reason


def beat_every_tick(
    watchdog: Watchdog, *, steps: bool, has_work: bool, step_seconds: float, seconds: float
) -> str | None:
    for i in range(int(seconds / TICK_SECONDS)):
        watchdog.heard()
        watchdog.beat(Heartbeat(i if steps else 1, step_seconds, has_work))
        reason = watchdog.tick(TICK_SECONDS)
        if reason is not None:
            return reason
    return None


def test_a_long_step_is_no_death_and_too_long_a_step_is() -> None:
    watchdog = Watchdog(CONFIG, ProcessState)
    assert beat_every_tick(watchdog, steps=False, has_work=True, step_seconds=29.0, seconds=1) is None
    reason = beat_every_tick(watchdog, steps=False, has_work=True, step_seconds=31.0, seconds=1)
    assert reason is not None and "engine-step-timeout" in reason


@pytest.mark.parametrize(
    ("steps", "has_work", "is_dead"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_work_without_a_step_is_death(steps: bool, has_work: bool, is_dead: bool) -> None:
    watchdog = Watchdog(CONFIG, ProcessState)
    reason = beat_every_tick(watchdog, steps=steps, has_work=has_work, step_seconds=0.0, seconds=90)
    assert (reason is not None) == is_dead
