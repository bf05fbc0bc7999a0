"""How much of the time a GPU had nothing to do, from the times of what ran on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

#: Microseconds. Between two kernels of one graph there are one or two; what is longer is a wait for the host.
GAP_US: Final = 5.0
#: Kinds of events in a trace of torch.profiler that keep the GPU busy.
_BUSY: Final = ("kernel", "gpu_memcpy", "gpu_memset")


@dataclass(frozen=True)
class Idle:
    """Shares of the time from the first to the last event."""

    all_gaps: float
    long_gaps: float  # of gaps above `GAP_US` alone: between steps
    num_gaps: int  # long ones
    seconds: float


def busy_intervals(trace: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(start, end) in microseconds of all that ran on the GPU, from a trace in Chrome's form."""
    events = [e for e in trace.get("traceEvents", ()) if e.get("ph") == "X" and e.get("cat") in _BUSY]
    return [(float(e["ts"]), float(e["ts"]) + float(e["dur"])) for e in events]


def merged(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Without overlaps, in order."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def part(intervals: Sequence[tuple[float, float]], start: float, end: float) -> list[tuple[float, float]]:
    """Those that lie between two shares of the whole time."""
    if not intervals:
        return []
    first, last = min(begin for begin, _ in intervals), max(stop for _, stop in intervals)
    low, high = first + start * (last - first), first + end * (last - first)
    return [interval for interval in intervals if interval[0] >= low and interval[1] <= high]


def idle(intervals: Sequence[tuple[float, float]], gap_us: float = GAP_US) -> Idle | None:
    """None when nothing ran."""
    busy = merged(interval for interval in intervals if interval[1] > interval[0])
    if not busy:
        return None
    total = busy[-1][1] - busy[0][0]
    gaps = [after[0] - before[1] for before, after in pairwise(busy)]
    long = [gap for gap in gaps if gap > gap_us]
    return Idle(sum(gaps) / total, sum(long) / total, len(long), total / 1e6)
