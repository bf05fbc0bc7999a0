"""The CPU as a device."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch

from octavo import _cpu
from octavo.config import CacheConfig, ParallelConfig
from octavo.device.base import CacheBudget, Download
from octavo.errors import DeviceError

_CGROUP_DIRS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


#: Without a flag the cache takes no more than this, or two full-length requests if that is more: a laptop's
#: memory is not the server's alone, and a cache that nothing fills is only slower to search.
DEFAULT_CACHE_BYTES = 4 << 30


class CPUDevice:
    """The host's processor and memory. Sets the size of the kernels' thread pool and their instruction set.

    Raises DeviceError when `config.isa` names kernels that this processor cannot run.
    """

    name = "cpu"
    plans_ahead = False
    uses_graphs = False
    decodes_as_prompts = True
    # A step on a CPU lasts as long as its tokens. With some dozens of rows the kernels are as fast as they get; with
    # more tokens of prompts the requests that run would only wait longer, and so would the prompts in front.
    default_batched_tokens = 512
    default_prefill_tokens = 128
    default_swap_gib = 0.0

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

    def activation_dtype(self, asked: torch.dtype | None, weights: torch.dtype | None) -> torch.dtype:
        return torch.float32

    def check_cache_dtype(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise DeviceError("--kv-cache-dtype fp8 needs a GPU, and the model runs on the CPU.")

    def kv_cache_budget(self, config: CacheConfig) -> CacheBudget:
        free = _free_memory_bytes()
        share = config.cpu_memory_utilization
        return CacheBudget(int(free * share), f"{share:.0%} of {free / 2**30:.1f} GiB free", DEFAULT_CACHE_BYTES)

    def upload(self, *host: np.ndarray, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        assert into is None, "no step is captured on a CPU"
        return [torch.from_numpy(array) for array in host]

    def upload_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def download(self, *tensors: torch.Tensor) -> Download:
        return lambda: [tensor.numpy() for tensor in tensors]

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        # torch.zeros writes its zeros, which takes seconds and all of the memory; fresh pages are zero already.
        pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            pages.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(pages, dtype=dtype).view(shape)

    def to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    def from_host(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return run


def default_num_threads() -> int:
    """One thread a physical core that this process may run on: hyper-threads share the FMA units and the cache."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


def _free_memory_bytes() -> int:
    """Bytes that can still be allocated without swapping or hitting a limit of the container's."""
    free = psutil.virtual_memory().available
    limit = _cgroup_free_bytes()
    return free if limit is None else min(free, limit)


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
