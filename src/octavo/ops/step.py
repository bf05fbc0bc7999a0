"""What a step brings to a program: the tokens' places, the caches, and what an attention planned for its lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from octavo.ops.operands import Heads, Latent

#: Of each of a program's caches, by their index: keys and values, or of a `Latent` the rows alone. Behind them each of
#: its states, float32 [slots, *shape].
KVCaches = Sequence[tuple[Tensor, ...]]


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
    def state_slots(self) -> Tensor | None: ...  # int32 [B]: of each sequence; None where no layer has a state
    @property
    def input_rows(self) -> Tensor | None: ...  # [T, width], of the table's type: of programs with `GivenRows`
    @property
    def key_ends(
        self,
    ) -> Tensor | None: ...  # int32 [T]: see `reference_attention.attention`; None: no row has an end of its own
    @property
    def encoder_lens(self) -> Tensor | None: ...  # int32 [B]: rows of each sequence's encoder; None where there is none
    @property
    def adapter_slots(self) -> Tensor | None: ...  # int32 [T], -1: none; None: no row runs with an adapter
    @property
    def position_parts(self) -> Tensor | None: ...  # int32 [parts, T]: `GatherRotation`; None: each is the position
    @property
    def replaced_index(self) -> Tensor | None: ...  # int64 [R], rising; None: no row is replaced
    @property
    def replaced_rows(self) -> Tensor | None: ...  # [R, width]
    @property
    def attention_plan(self) -> Any: ...  # made by the table's `attention_planner`, or by `AttentionPlanners`, or None
    @property
    def encoder_plan(self) -> Any: ...  # the same for the caches of an encoder, whose lengths are `encoder_lens`


@dataclass(frozen=True)
class PlannedArrays:
    """What an attention plan is made of: arrays to be uploaded with the step, and numbers that stay on the host."""

    tensors: tuple[np.ndarray, ...] = ()
    numbers: Any = None


class NoPlanner:
    """Of an attention that reads all it needs from the step's tensors."""

    def __init__(self, heads: Heads | Latent, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing of the heads, the device or the activations' type is needed."""

    def arrays(self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int) -> PlannedArrays:
        return PlannedArrays()

    def plan(self, arrays: PlannedArrays, tensors: Sequence[Tensor]) -> None:
        return None


class AttentionPlanners:
    """One planner a shape of a model's attentions, as one; its plan is a mapping from the shapes to theirs."""

    def __init__(
        self, make: Callable[..., Any], shapes: Sequence[Heads | Latent], device: torch.device, dtype: torch.dtype
    ) -> None:
        """`make`: the table's `attention_planner`."""
        self._planners = {shape: make(shape, device, dtype) for shape in shapes}

    def arrays(self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int) -> PlannedArrays:
        return _together([each.arrays(seq_lens, query_start_loc, num_decodes) for each in self._planners.values()])

    def padded_arrays(
        self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int, **most: int
    ) -> PlannedArrays | None:
        """None: one of them has no plan of a fixed shape for the step."""
        planned = [
            each.padded_arrays(seq_lens, query_start_loc, num_decodes, **most) for each in self._planners.values()
        ]
        return None if None in planned else _together(planned)

    def plan(self, arrays: PlannedArrays, tensors: Sequence[Tensor]) -> dict[Heads | Latent, Any]:
        plans, first = {}, 0
        for (shape, planner), each in zip(self._planners.items(), arrays.numbers, strict=True):
            end = first + len(each.tensors)
            plans[shape] = planner.plan(each, tensors[first:end])
            first = end
        return plans


def _together(planned: Sequence[Any]) -> PlannedArrays:
    return PlannedArrays(tuple(array for each in planned for array in each.tensors), planned)


def attention_planners(
    make: Callable[..., Any], shapes: Sequence[Heads | Latent], device: torch.device, dtype: torch.dtype
) -> Any:
    """What plans for attentions of these shapes; one shape's planner is that of the table itself."""
    if len(shapes) == 1:
        return make(shapes[0], device, dtype)
    return AttentionPlanners(make, shapes, device, dtype)
