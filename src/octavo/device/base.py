"""What the model runner needs of a device. A CPU is a device like any other, so the runner has no `if cuda`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from octavo.base.config import CacheConfig
from octavo.base.host import FreeMemory

#: Waits for what was downloaded and returns it, in the order of the tensors.
Download = Callable[[], list[np.ndarray]]


@dataclass(frozen=True)
class CacheBudget:
    """What a KV cache may take of the device's memory."""

    num_bytes: int
    reason: str  # for the start-up report
    free: FreeMemory  # what a user may ask for, at most
    default_bytes: int | None = None  # not more than this without being asked; None: all of it


class Device(Protocol):
    """One place where tensors live and kernels run, in the order in which they were launched."""

    @property
    def name(self) -> str:
        """Key of the ops table, e.g. "cpu"."""

    @property
    def description(self) -> str:
        """For the start-up report, e.g. "cpu, avx2, 2 threads"."""

    @property
    def torch_device(self) -> torch.device: ...

    @property
    def plans_ahead(self) -> bool:
        """Whether kernels run beside the host, so that it pays to launch a step before the last one's result is
        there."""

    @property
    def uses_graphs(self) -> bool:
        """Whether launching is dear enough that steps of decoding should be captured and replayed."""

    @property
    def decodes_as_prompts(self) -> bool:
        """Whether a token gets the same keys and values, bit for bit, alone and as part of a prompt."""

    @property
    def default_batched_tokens(self) -> int:
        """Tokens of a step at most, unless the user says otherwise."""

    @property
    def default_prefill_tokens(self) -> int:
        """Of these, tokens of prompts."""

    @property
    def default_swap_gib(self) -> float:
        """GiB of the host's memory for preempted requests, unless the user says otherwise."""

    def activation_dtype(self, asked: torch.dtype | None, weights: torch.dtype | None) -> torch.dtype:
        """The type of activations for a model whose unquantized weights have type `weights` (None: all kinds), where
        the user asked for `asked` or nothing."""

    def check_cache_dtype(self, dtype: torch.dtype, asked: str) -> None:
        """Raises DeviceError where the kernels cannot read or write a KV cache of this type, which the user calls
        `asked`."""

    def synchronize(self) -> None:
        """Wait for all that was launched. For measuring only: nothing else needs it."""

    def free_memory(self) -> FreeMemory:
        """What can be allocated now."""

    def kv_cache_budget(self, config: CacheConfig, step_bytes: int) -> CacheBudget:
        """What is left for the KV cache beside everything else. `step_bytes`: what the buffers of the largest step will
        take, which may not have been taken from the machine yet."""

    def upload(self, *host: np.ndarray, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Tensors on the device with the contents of `host`, all in one copy.

        On the CPU they share the memory of `host`, so the caller must not write to that before the step that reads
        the tensors has ended. `into`, uint8 on the device: where to put them; the places depend on the arrays' types
        and shapes alone, so that a captured step finds them again.
        """

    def upload_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """The same values on the device; the tensor itself if it is there already."""

    def download(self, *tensors: torch.Tensor) -> Download:
        """Begin to fetch tensors, as they are after what has been launched so far."""

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        """uint8 on the host: copies to and from it that are not waited for go on beside the host's work, one behind the
        other. Raises RuntimeError when there is none. Any thread may ask for it, and may have to wait for it."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """A large tensor of zeros that takes memory from the machine only as it is written, where that is possible.
        Raises OSError or RuntimeError when there is none."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """A function that repeats the launches of `run` on the same tensors. `run` has been called before."""
