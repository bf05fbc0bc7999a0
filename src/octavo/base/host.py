"""What this process may use of its machine: CPUs, cores and memory, within the limits of its container or service."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from octavo.base.cgroup import Cgroups

_CPU_DIRECTORY = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class FreeMemory:
    """Bytes that can be allocated without swapping; `where` says whose, for a sentence: "1.5 GiB free <where>"."""

    num_bytes: int
    where: str

    def less(self, num_bytes: int) -> FreeMemory:
        """What is left when so many bytes are taken, for which there is a use."""
        return FreeMemory(max(0, self.num_bytes - num_bytes), self.where)

    def __str__(self) -> str:
        return f"{gib(self.num_bytes)} free {self.where}"


def gib(num_bytes: float) -> str:
    """A size as people write it: 1.5 GiB, or MiB where it is less than one of those."""
    return f"{num_bytes / 2**30:,.1f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.0f} MiB"


def num_cpus(groups: Cgroups | None = None) -> int:
    """CPUs that can be busy at the same time all the time. A quota is rounded down, but never to none.

    Rounded up, 1.5 CPUs would be two threads that stand still together for a quarter of each period, in the middle of
    a token, and the part of a CPU that is left over is needed: the HTTP server is under the same quota.
    """
    return _within_quota(len(_allowed_cpus()), groups)


def num_cores(groups: Cgroups | None = None) -> int:
    """The same with one CPU a physical core: hyper-threads share the units that multiply, and the cache."""
    return _within_quota(_num_physical(_allowed_cpus()), groups)


def free_memory(groups: Cgroups | None = None) -> FreeMemory:
    """What can still be allocated, on the machine and below every limit. Swap is no memory for a model."""
    free = FreeMemory(psutil.virtual_memory().available, "on this machine")
    room = (groups or Cgroups()).memory_room()
    if room is None or room.num_bytes >= free.num_bytes:
        return free
    return FreeMemory(room.num_bytes, f"below the limit of {gib(room.limit)} in {room.source}")


def _allowed_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _within_quota(count: int, groups: Cgroups | None) -> int:
    limit = (groups or Cgroups()).cpu_limit()
    return max(1, count if limit is None else min(count, math.floor(limit.cpus)))


def _num_physical(cpus: Iterable[int]) -> int:
    """How many cores the CPUs belong to; all of the machine's at most where the system does not tell."""
    numbers = list(cpus)
    try:
        siblings = {(_CPU_DIRECTORY / f"cpu{n}/topology/thread_siblings_list").read_text() for n in numbers}
    except OSError:
        return min(len(numbers), psutil.cpu_count(logical=False) or len(numbers))
    return len(siblings)
