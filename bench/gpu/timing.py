"""Times of work on the GPU, by its own events: warm, the median of repeats, many calls in one graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final

import torch

Call = Callable[[], object]
#: Milliseconds that one sample should take at least, so that the events' resolution does not matter.
_SAMPLE_MS: Final = 2.0
_MOST_ROUNDS: Final = 200
#: Of data that is to come from memory, not from a cache: several times the largest L2 there is.
SPREAD_BYTES: Final = 384 << 20


def copies_for(num_bytes: int, most: int = 64) -> int:
    """How many copies of data that a call reads make each call find its own in memory."""
    return max(1, min(most, -(-SPREAD_BYTES // max(1, num_bytes))))


def call_us(calls: Sequence[Call], samples: int = 7, is_captured: bool = True) -> float:
    """Microseconds of one call. `calls` do the same on different data, in turn; their launches are captured in a
    graph, so that the host is not measured. On a CPU: one call by the clock."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        calls[0]()
        return 1e6 * (time.perf_counter() - start)
    for call in calls[:2]:
        call()  # compiles, makes handles, chooses algorithms
    torch.cuda.synchronize()
    once = max(1e-3, _elapsed_ms(lambda: [call() for call in calls]))
    rounds = max(1, min(_MOST_ROUNDS, round(_SAMPLE_MS / once)))
    run = _captured(calls, rounds) if is_captured else lambda: [call() for _ in range(rounds) for call in calls]
    run()
    times = [_elapsed_ms(run) for _ in range(samples)]
    return 1e3 * statistics.median(times) / (rounds * len(calls))


def _captured(calls: Sequence[Call], rounds: int) -> Call:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph.replay


def _elapsed_ms(run: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def host_us(call: Call, count: int) -> float:
    """Microseconds that the host needs for one call, the GPU being free to lag behind."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        call()
    seconds = time.perf_counter() - start
    torch.cuda.synchronize()
    return 1e6 * seconds / count
