"""A device whose kernels run in Triton's interpreter: everything a GPU's device does, on the host's memory.

It plans ahead and captures steps. What was sampled is known to the host only when `wait` is called, as on a GPU: a
download taken too early shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from octavo.base.config import CacheConfig
from octavo.base.host import FreeMemory
from octavo.device.base import CacheBudget, Download
from octavo.device.packing import pack, packed_offsets, unpacked


class InterpretedDevice:
    name = "cuda"
    description = "interpreter"
    torch_device = torch.device("cpu")
    plans_ahead = True
    uses_graphs = True
    decodes_as_prompts = False
    default_batched_tokens = 64
    default_prefill_tokens = 64
    default_swap_gib = 0.01

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        self.num_replays = 0
        self.num_uploads = 0

    def activation_dtype(self, asked: torch.dtype | None, weights: torch.dtype | None) -> torch.dtype:
        return self._dtype

    def check_cache_dtype(self, dtype: torch.dtype, asked: str) -> None:
        """All types are fine."""

    def synchronize(self) -> None:
        """All is computed when it is launched."""

    def free_memory(self) -> FreeMemory:
        return FreeMemory(1 << 30, "for a test")

    def kv_cache_budget(self, config: CacheConfig, step_bytes: int) -> CacheBudget:
        return CacheBudget(1 << 20, "a megabyte", self.free_memory())

    def upload(self, *host: np.ndarray, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        self.num_uploads += 1
        offsets, size = packed_offsets(host)
        target = torch.empty(size, dtype=torch.uint8) if into is None else into[:size]
        pack(host, offsets, target.numpy())
        return unpacked(target, host, offsets)

    def upload_weight(self, weight: torch.Tensor) -> torch.Tensor:
        return weight

    def download(self, *tensors: torch.Tensor) -> Download:
        copies = [tensor.clone().numpy() for tensor in tensors]
        return lambda: copies

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.num_replays += 1
            run()

        return replay
