"""The CPU as a device."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import numpy as np
import psutil
import torch

from octavo import _cpu
from octavo.config import ParallelConfig
from octavo.errors import DeviceError

_CGROUP_DIRS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


class CPUDevice:
    """The host's processor and memory. Sets the size of the kernels' thread pool and their instruction set.

    Raises DeviceError when `config.isa` names kernels that this processor cannot run.
    """

    name = "cpu"

    def __init__(self, config: ParallelConfig) -> None:
        if config.isa is not None:
            try:
                _cpu.set_isa(config.isa)
            except (RuntimeError, ValueError) as error:
                raise DeviceError(f"--isa {config.isa}: {error}") from None
        self.num_threads = config.num_threads or default_num_threads()
        _cpu.set_num_threads(self.num_threads)
        # torch's own pool would spin beside ours; torch does little more than allocate here.
        torch.set_num_threads(1)

    @property
    def description(self) -> str:
        threads = "thread" if self.num_threads == 1 else "threads"
        return f"cpu, {_cpu.isa()}, {self.num_threads} {threads}"

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def free_memory_bytes(self) -> int:
        free = psutil.virtual_memory().available
        limit = _cgroup_free_bytes()
        return free if limit is None else min(free, limit)

    def upload(self, host: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(host)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # torch.zeros writes its zeros, which takes seconds and all of the memory; fresh pages are zero already.
        pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=dtype).view(shape)

    def synchronize(self) -> None:
        """Kernels on the CPU have ended when they return."""


def default_num_threads() -> int:
    """One thread a physical core that this process may run on: hyper-threads share the FMA units and the cache."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


def _cgroup_free_bytes() -> int | None:
    """Bytes left under the container's memory limit, or None without a limit."""
    for directory in _CGROUP_DIRS:
        for limit_name, usage_name in _CGROUP_FILES:
            try:
                limit = (directory / limit_name).read_text().strip()
                usage = (directory / usage_name).read_text().strip()
            except OSError:
                continue
            if limit.isdigit() and usage.isdigit():
                return max(0, int(limit) - int(usage))
    return None
