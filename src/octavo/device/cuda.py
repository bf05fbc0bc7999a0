"""An NVIDIA GPU as a device: one stream of kernels, pinned buffers between host and device, captured graphs."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch

from octavo.base.config import CacheConfig, ParallelConfig
from octavo.base.errors import DeviceError
from octavo.base.host import FreeMemory, gib
from octavo.device.base import CacheBudget, Download
from octavo.device.packing import pack, packed_offsets, unpacked

MIN_CAPABILITY: Final = (8, 0)
_FP8_CAPABILITY: Final = (8, 9)
#: Pinned buffers that take turns: a buffer is written again when its last copy has ended, long before by then. A step
#: uploads up to seven times, and two steps are under way.
_NUM_STAGES: Final = 16
_WEIGHT_CHUNK: Final = 32 << 20
_NUM_WEIGHT_STAGES: Final = 4
_DEFAULT_UTILIZATION: Final = 0.9
#: For temporaries of sampling and attention, captured graphs, and the workspaces of cuBLAS.
_RESERVED_BYTES: Final = 1 << 30


class CUDADevice:
    """The current GPU of the process (CUDA_VISIBLE_DEVICES chooses).

    Raises DeviceError when there is none that the kernels run on.
    """

    name = "cuda"
    plans_ahead = True
    uses_graphs = True
    decodes_as_prompts = False
    default_batched_tokens = 8192
    default_prefill_tokens = 2048  # enough to keep the matrices busy; more would hold up those who decode
    default_swap_gib = 4.0

    def __init__(self, config: ParallelConfig) -> None:
        if not torch.cuda.is_available():
            raise DeviceError("--device cuda: torch finds no NVIDIA GPU, or was installed without CUDA.")
        self.torch_device: Final = torch.device("cuda", torch.cuda.current_device())
        properties = torch.cuda.get_device_properties(self.torch_device)
        capability = self._capability = (properties.major, properties.minor)
        if capability < MIN_CAPABILITY:
            raise DeviceError(
                f"--device cuda: {properties.name} has compute capability {capability[0]}.{capability[1]}; "
                f"octavo needs {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} or more."
            )
        check_compiler()
        self.description: Final = f"cuda, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        self._uploads = PinnedStages()
        self._weights = PinnedStages(_WEIGHT_CHUNK, _NUM_WEIGHT_STAGES)
        self._graph_pool = torch.cuda.graph_pool_handle()
        # A product's result must not depend on whether another library lets half precision sum in half precision.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

    def activation_dtype(self, asked: torch.dtype | None, weights: torch.dtype | None) -> torch.dtype:
        if asked is not None:
            return asked
        return torch.float16 if weights == torch.float16 else torch.bfloat16

    def check_cache_dtype(self, dtype: torch.dtype, asked: str) -> None:
        if dtype == torch.int8:
            raise DeviceError(
                f"--kv-cache-dtype {asked} is for a model that runs on the CPU, and this one runs on a GPU: fp8 takes "
                "as little memory there."
            )
        if dtype == torch.float8_e4m3fn and self._capability < _FP8_CAPABILITY:
            raise DeviceError(
                f"--kv-cache-dtype {asked} needs a GPU of compute capability 8.9 or more; this one has "
                f"{self._capability[0]}.{self._capability[1]}. --kv-cache-dtype fp8_e5m2 runs on it."
            )

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def free_memory(self) -> FreeMemory:
        self.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return FreeMemory(free, f"of the GPU's {gib(total)}")

    def kv_cache_budget(self, config: CacheConfig, step_bytes: int) -> CacheBudget:
        free_memory = self.free_memory()
        free, total = torch.cuda.mem_get_info(self.torch_device)
        share = config.gpu_memory_utilization or _DEFAULT_UTILIZATION
        # The buffers of a step (step_bytes) are allocated by now; temporaries, graphs and libraries still come.
        allowed = int(total * share) - (total - free) - _RESERVED_BYTES
        reason = f"what is left of {share:.0%} of {total / 2**30:.0f} GiB"
        return CacheBudget(max(0, allowed), reason, free_memory.less(_RESERVED_BYTES))

    def upload(self, *host: np.ndarray, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        offsets, size = packed_offsets(host)
        stage = self._uploads.next(size)
        pack(host, offsets, stage.host.numpy())
        target = torch.empty(size, dtype=torch.uint8, device=self.torch_device) if into is None else into[:size]
        target.copy_(stage.host[:size], non_blocking=True)
        stage.copied.record()
        return unpacked(target, host, offsets)

    def upload_weight(self, weight: torch.Tensor) -> torch.Tensor:
        if weight.device == self.torch_device:
            return weight
        source = weight.contiguous()
        target = torch.empty(source.shape, dtype=source.dtype, device=self.torch_device)
        if source.nbytes == 0:
            return target
        # The file's pages go to pinned memory with all of torch's threads, while the chunk before is on its way.
        flat_source, flat_target = source.view(-1).view(torch.uint8), target.view(-1).view(torch.uint8)
        for start in range(0, source.nbytes, _WEIGHT_CHUNK):
            chunk = flat_source[start : start + _WEIGHT_CHUNK]
            stage = self._weights.next(len(chunk))
            stage.host[: len(chunk)].copy_(chunk)
            flat_target[start : start + len(chunk)].copy_(stage.host[: len(chunk)], non_blocking=True)
            stage.copied.record()
        return target

    def download(self, *tensors: torch.Tensor) -> Download:
        hosts = [_pinned_copy(tensor) for tensor in tensors]
        ended = torch.cuda.Event()  # type: ignore[no-untyped-call]
        ended.record()

        def wait() -> list[np.ndarray]:
            ended.synchronize()
            return [host.numpy() for host in hosts]

        return wait

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        torch.cuda.set_device(self.torch_device)  # a thread has a device of its own
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.torch_device)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # One pool for all graphs: they never run at the same time, so that their temporaries may share memory. What
        # other threads do with the GPU meanwhile (a library's watchdog) is no part of the capture, and no error.
        with torch.cuda.graph(graph, pool=self._graph_pool, capture_error_mode="thread_local"):
            run()
        return graph.replay


def _pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """On the host, complete when what was launched so far has ended."""
    # Pinned memory comes from torch's cache, which does not hand it out again before the copy has ended.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def check_compiler() -> None:
    """Raise DeviceError where Triton could not build what launches its kernels: a few lines of C, when the first is
    launched, with the compiler and the headers of Python that it finds then."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if compiler is None or shutil.which(compiler) is None:
        raise DeviceError(
            "--device cuda: Triton needs a C compiler to launch kernels, and there is none: install gcc, or name one "
            "in CC."
        )
    if not headers.is_file():
        raise DeviceError(
            f"--device cuda: Triton needs the headers of Python to launch kernels, and there is no {headers}: install "
            "python3-dev."
        )


class _Stage:
    """A pinned buffer and the end of the copy that last read it."""

    def __init__(self, size: int) -> None:
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]


class PinnedStages:
    """Buffers in turn, made when they are first needed and replaced by larger ones when they are too small."""

    def __init__(self, size: int = 1 << 20, count: int = _NUM_STAGES) -> None:
        self._size = size
        self._count = count
        self._stages: list[_Stage] = []
        self._turn = 0

    def next(self, size: int) -> _Stage:
        """A buffer of at least `size` bytes that may be written. Its user records `copied` behind the copy."""
        self._turn = (self._turn + 1) % self._count
        if len(self._stages) < self._count:
            self._stages.append(_Stage(max(size, self._size)))
            return self._stages[-1]
        stage = self._stages[self._turn]
        stage.copied.synchronize()
        if len(stage.host) < size:
            stage = self._stages[self._turn] = _Stage(max(size, 2 * len(stage.host)))
        return stage
