"""Devices for tests of the worker: the host's memory, without the native module."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from octavo.device.base import Download


class HostDevice:
    """What the CPU's device does with memory."""

    name = "host"
    description = "host"
    torch_device = torch.device("cpu")
    plans_ahead = False
    uses_graphs = False
    default_batched_tokens = 512
    default_prefill_tokens = 128

    def upload(self, *host: np.ndarray, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        assert into is None
        return [torch.from_numpy(array) for array in host]

    def download(self, *tensors: torch.Tensor) -> Download:
        return lambda: [tensor.numpy() for tensor in tensors]

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return run
