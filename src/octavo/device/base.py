"""What the model runner needs of a device. A CPU is a device like any other, so the runner has no `if cuda`."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch


class Device(Protocol):
    """One place where tensors live and kernels run."""

    @property
    def name(self) -> str:
        """Key of the ops table, e.g. "cpu"."""

    @property
    def description(self) -> str:
        """For the start-up report, e.g. "cpu, avx2, 2 threads"."""

    @property
    def torch_device(self) -> torch.device: ...

    def free_memory_bytes(self) -> int:
        """Bytes that can still be allocated without swapping or hitting a limit of the container's."""

    def upload(self, host: np.ndarray) -> torch.Tensor:
        """A tensor on the device with the contents of `host`. On the CPU it shares the memory of `host`,
        so the caller must not write to `host` before the step that reads the tensor has ended."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A large tensor of zeros that takes memory from the machine only as it is written. Raises OSError or
        RuntimeError when there is none."""

    def synchronize(self) -> None:
        """Wait until all kernels launched so far have ended."""
