"""The CPU as a device."""

from __future__ import annotations

import logging
import math
import mmap
import os
from collections.abc import Callable

import numpy as np
import torch

from octavo.base import host
from octavo.base.cgroup import Cgroups
from octavo.base.config import CacheConfig, ParallelConfig
from octavo.base.errors import DeviceError
from octavo.base.host import FreeMemory, gib
from octavo.base.native import has_native_cpu
from octavo.device.base import CacheBudget, Download

logger = logging.getLogger("octavo.device")

#: Without a flag the cache takes no more than this, or two full-length requests if that is more: a laptop's
#: memory is not the server's alone, and a cache that nothing fills is only slower to search.
DEFAULT_CACHE_BYTES = 4 << 30


class CPUDevice:
    """The host's processor and memory. Sets the size of the kernels' thread pool and their instruction set.

    Raises DeviceError when `config.isa` names kernels that this processor cannot run, and when there is a native module
    that cannot be loaded. Without one, torch computes.
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
        self.num_threads = config.num_threads or default_num_threads()
        limit = Cgroups().cpu_limit()
        if config.num_threads is None and limit is not None and limit.cpus < (os.cpu_count() or 1):
            logger.info("threads: %d, for %s allows %.3g CPUs", self.num_threads, limit.source, limit.cpus)
        if not has_native_cpu():
            if config.isa is not None:
                raise DeviceError(f"--isa {config.isa}: octavo's native module was not built, so there are no kernels.")
            self._isa = "no native kernels"
            torch.set_num_threads(self.num_threads)
            return
        from octavo import _cpu

        if config.isa is not None:
            try:
                _cpu.set_isa(config.isa)
            except (RuntimeError, ValueError) as error:
                raise DeviceError(f"--isa {config.isa}: {error}") from None
        self._isa = _cpu.isa()
        _cpu.set_num_threads(self.num_threads)
        # torch's own pool would spin beside ours; torch does little more than allocate here.
        torch.set_num_threads(1)

    @property
    def description(self) -> str:
        threads = "thread" if self.num_threads == 1 else "threads"
        return f"cpu, {self._isa}, {self.num_threads} {threads}"

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu")

    def activation_dtype(self, asked: torch.dtype | None, weights: torch.dtype | None) -> torch.dtype:
        return torch.float32

    def check_cache_dtype(self, dtype: torch.dtype, asked: str) -> None:
        """All types that have a name are there."""

    def synchronize(self) -> None:
        """A call returns when it has computed."""

    def free_memory(self) -> FreeMemory:
        return host.free_memory()

    def kv_cache_budget(self, config: CacheConfig, step_bytes: int) -> CacheBudget:
        # The system gives pages when they are first written: what was allocated and not used yet still counts as free.
        free = host.free_memory().less(step_bytes)
        share = config.cpu_memory_utilization
        steps = f"{gib(step_bytes)} kept for steps of --max-num-seqs and --max-num-batched-tokens"
        reason = f"{share:.0%} of {free}, with {steps}"
        return CacheBudget(int(free.num_bytes * share), reason, free, DEFAULT_CACHE_BYTES)

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

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return run


def default_num_threads() -> int:
    """One thread a physical core, as many as this process may use all the time."""
    return host.num_cores()
