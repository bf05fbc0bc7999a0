"""What the machine can do at best, measured now with the native kernels' threads: the ceilings that rates are told by.

Measure in the same minute as what is to be judged: a neighbour on the same machine lowers both.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass

from octavo.base.host import num_cpus
from octavo.base.native import has_native_cpu
from octavo.bench.machine import last_cache_bytes

#: What is read, at the least and at most; between them twice the last cache.
LEAST_BYTES, MOST_BYTES = 256 << 20, 1 << 30
#: Steps of arithmetic in one task of the pool: some milliseconds in all.
STEPS = 50_000
ROUNDS = 7


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together, in units of 10^9 a second."""

    num_threads: int
    memory_read_gb_s: float
    float32_gflop_s: float
    int8_gop_s: float

    def __str__(self) -> str:
        return (
            f"at best it reads {self.memory_read_gb_s:.1f} GB/s and computes {self.float32_gflop_s:.0f} GFLOP/s in "
            f"float32, {self.int8_gop_s:.0f} GOP/s in int8"
        )


def measure_limits(
    num_threads: int | None = None, *, read_bytes: int | None = None, steps: int = STEPS, rounds: int = ROUNDS
) -> Limits | None:
    """The best of some rounds each; None where octavo's native module was not built.

    Raises DeviceError where it was, and cannot be loaded.
    Uses the pool of this process, and gives it back with as many threads as it had.
    """
    if not has_native_cpu():
        return None
    from octavo import _cpu

    if read_bytes is None:
        read_bytes = min(MOST_BYTES, max(LEAST_BYTES, 2 * last_cache_bytes()))
    before, threads = _cpu.num_threads(), num_threads or num_cpus()
    _cpu.set_num_threads(threads)
    try:
        return Limits(
            num_threads=threads,
            memory_read_gb_s=_read_rate(_cpu.read_memory, read_bytes, rounds),
            float32_gflop_s=_best(lambda: _cpu.multiply_add(steps), rounds),
            int8_gop_s=_best(lambda: _cpu.dot_int8(steps), rounds),
        )
    finally:
        _cpu.set_num_threads(before)


def best_of(one: Limits | None, other: Limits | None) -> Limits | None:
    """Of two measurements of one machine the better figures."""
    if one is None or other is None:
        return one or other
    return Limits(
        num_threads=one.num_threads,
        memory_read_gb_s=max(one.memory_read_gb_s, other.memory_read_gb_s),
        float32_gflop_s=max(one.float32_gflop_s, other.float32_gflop_s),
        int8_gop_s=max(one.int8_gop_s, other.int8_gop_s),
    )


def _read_rate(read: Callable[[int, int], None], num_bytes: int, rounds: int) -> float:
    import numpy as np  # here: most benchmarks of servers never come to this

    with mmap.mmap(-1, num_bytes) as pages:
        memory = np.frombuffer(pages, np.uint8)
        memory[:] = 1  # pages that were never written are one page of zeros
        address = memory.ctypes.data

        def work() -> int:
            read(address, num_bytes)
            return num_bytes

        rate = _best(work, rounds)
        del memory  # a view keeps the pages from being closed
    return rate


def _best(work: Callable[[], int], rounds: int) -> float:
    """10^9 units a second; `work` returns how many units it did."""
    best = 0.0
    for _ in range(rounds):
        start = time.perf_counter()
        units = work()
        best = max(best, units / max(1e-9, time.perf_counter() - start) / 1e9)
    return round(best, 2)
