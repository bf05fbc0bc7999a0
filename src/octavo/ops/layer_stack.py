"""All layers of a step as one operation: what stands between the first norm and the last.

`LayerStack` is its meaning, call by call of the table's other operations; a device may bring its own, which does the
same calls in the same order without the way through Python between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

KVCaches = Sequence[tuple[Tensor, Tensor]]


class StepTensors(Protocol):
    """The plan of a step of T tokens in B sequences, as the operations read it."""

    @property
    def positions(self) -> Tensor: ...  # int32 [T]
    @property
    def slot_mapping(self) -> Tensor: ...  # int64 [T]
    @property
    def query_start_loc(self) -> Tensor: ...  # int32 [B + 1]
    @property
    def seq_lens(self) -> Tensor: ...  # int32 [B]
    @property
    def block_tables(self) -> Tensor: ...  # int32 [B, max_blocks]
    @property
    def attention_plan(self) -> Any: ...  # made by the table's `attention_planner`, or None


@dataclass(frozen=True, kw_only=True)
class StackShape:
    """What all layers have in common."""

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    attn_scale: float
    softcap: float  # of attention; 0: none
    activation: str

    @property
    def qkv_size(self) -> int:
        """Columns of the stacked projection q | k | v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


@dataclass(frozen=True, kw_only=True, eq=False)
class StackLayer:
    """One layer's packed matrices, its norms in float32, and the table of its rotation.

    `next_norm` is the norm behind the layer: the next layer's first, or the last of all.
    """

    qkv: Any  # LinearWeight of the table, as o, gate_up and down
    o: Any
    gate_up: Any
    down: Any
    q_norm: Tensor | None
    k_norm: Tensor | None
    attn_post_norm: Tensor | None
    mlp_norm: Tensor
    mlp_post_norm: Tensor | None
    next_norm: Tensor
    cos_sin: Tensor  # [positions, head_dim]
    window: int  # keys at a distance below it are seen; 0: all


class Workspace:
    """The activations of one step for up to `capacity` tokens, of the table's type and on its device."""

    def __init__(self, shape: StackShape, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        def rows(width: int) -> Tensor:
            return torch.empty(capacity, width, dtype=dtype, device=device)

        self.capacity = capacity
        self.residual = rows(shape.hidden_size)
        self.normed = rows(shape.hidden_size)
        self.qkv = rows(shape.qkv_size)
        self.attn = rows(shape.num_heads * shape.head_dim)
        self.block_out = rows(shape.hidden_size)
        self.gate_up = rows(2 * shape.intermediate_size)
        self.act = rows(shape.intermediate_size)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in vars(self).values() if isinstance(part, Tensor))


@dataclass(frozen=True)
class PlannedArrays:
    """What an attention plan is made of: arrays to be uploaded with the step, and numbers that stay on the host."""

    tensors: tuple[np.ndarray, ...] = ()
    numbers: Any = None


class NoPlanner:
    """Of an attention that reads all it needs from the step's tensors."""

    def __init__(self, shape: StackShape, device: torch.device, dtype: torch.dtype) -> None:
        """Nothing of the shape, the device or the activations' type is needed."""

    def arrays(self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int) -> PlannedArrays:
        return PlannedArrays()

    def plan(self, arrays: PlannedArrays, tensors: Sequence[Tensor]) -> None:
        return None


class Table(Protocol):
    """`table.Ops`, as far as the layers need it."""

    @property
    def linear(self) -> Any: ...
    @property
    def rms_norm(self) -> Any: ...
    @property
    def add_rms_norm(self) -> Any: ...
    @property
    def act_mul(self) -> Any: ...
    @property
    def rope_kv_write(self) -> Any: ...
    @property
    def attention(self) -> Any: ...


class LayerStack:
    """See the module. `run` may be called by one thread at a time."""

    def __init__(self, ops: Table, shape: StackShape, layers: Sequence[StackLayer]) -> None:
        self._ops = ops
        self._shape = shape
        self._layers = tuple(layers)

    def run(
        self,
        space: Workspace,
        num_tokens: int,
        step: StepTensors,
        kv_caches: KVCaches,
        needed: Tensor | None = None,
    ) -> None:
        """Run the step's tokens through all layers; their keys and values go to the caches, one (k, v) a layer.

        The first `num_tokens` rows of `space` are used. `residual` and `normed` hold the first layer's input, before
        and behind its norm, and at the end the output likewise: of all rows, or of `needed`, int64 [S] in rising
        order, in the first S. The last layer then computes no others behind its attention.
        """
        shape, ops = self._shape, self._ops
        residual, normed, qkv = space.residual[:num_tokens], space.normed[:num_tokens], space.qkv[:num_tokens]
        attn, block_out = space.attn[:num_tokens], space.block_out[:num_tokens]
        gate_up, act = space.gate_up[:num_tokens], space.act[:num_tokens]
        positions, slot_mapping = step.positions, step.slot_mapping
        plan = (step.block_tables, step.seq_lens, step.query_start_loc)
        linear, eps, heads = ops.linear, shape.eps, (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        for layer, (k, v) in zip(self._layers, kv_caches, strict=True):
            linear(qkv, normed, layer.qkv)
            ops.rope_kv_write(
                qkv, positions, layer.cos_sin, layer.q_norm, layer.k_norm, eps, k, v, slot_mapping, *heads
            )
            ops.attention(attn, qkv, k, v, *plan, *heads, shape.attn_scale, layer.window, shape.softcap)
            if needed is not None and layer is self._layers[-1]:
                # In place: the rows that are read have not been written before, for needed[i] >= i.
                num_tokens = len(needed)
                attn[:num_tokens], residual[:num_tokens] = attn[needed], residual[needed]
                residual, normed, attn = residual[:num_tokens], normed[:num_tokens], attn[:num_tokens]
                block_out, gate_up, act = block_out[:num_tokens], gate_up[:num_tokens], act[:num_tokens]
            linear(block_out, attn, layer.o)
            if layer.attn_post_norm is not None:
                ops.rms_norm(block_out, block_out, layer.attn_post_norm, eps)
            ops.add_rms_norm(normed, residual, block_out, layer.mlp_norm, eps)
            linear(gate_up, normed, layer.gate_up)
            ops.act_mul(act, gate_up, shape.activation)
            linear(block_out, act, layer.down)
            if layer.mlp_post_norm is not None:
                ops.rms_norm(block_out, block_out, layer.mlp_post_norm, eps)
            ops.add_rms_norm(normed, residual, block_out, layer.next_norm, eps)
