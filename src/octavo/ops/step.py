"""What a step brings to a program: the tokens' places, the caches, and what an attention planned for its lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from octavo.ops.program import Heads

#: (k, v) of each of a program's caches, by their index.
KVCaches = Sequence[tuple[Tensor, Tensor]]


class StepTensors(Protocol):
    """The plan of a step of T tokens in B sequences, as the operations read it."""

    @property
    def token_ids(self) -> Tensor: ...  # int32 [T]
    @property
    def positions(self) -> Tensor: ...  # int32 [T]
    @property
    def query_start_loc(self) -> Tensor: ...  # int32 [B + 1]
    @property
    def seq_lens(self) -> Tensor: ...  # int32 [B]
    @property
    def cache_groups(self) -> Sequence[tuple[Tensor, Tensor]]:
        """Of each group of caches: block_tables int32 [B, max_blocks], slot_mapping int64 [T]."""

    @property
    def attention_plan(self) -> Any: ...  # made by the table's `attention_planner`, or None


@dataclass(frozen=True)
class PlannedArrays:
    """What an attention plan is made of: arrays to be uploaded with the step, and numbers that stay on the host."""

    tensors: tuple[np.ndarray, ...] = ()
    numbers: Any = None


class NoPlanner:
    """Of an attention that reads all it needs from the step's tensors."""

    def __init__(self, heads: Heads, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing of the heads, the device or the activations' type is needed."""

    def arrays(self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int) -> PlannedArrays:
        return PlannedArrays()

    def plan(self, arrays: PlannedArrays, tensors: Sequence[Tensor]) -> None:
        return None
