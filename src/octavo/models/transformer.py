"""The decoder that all families share, run through the `Ops` table.

The residual stream is float32 [T, H]. Each block reads a normed copy of it and adds to it; the addition and the
norm of the next block are one operation, so that a layer is nine calls (and one more for each norm behind a block):

    normed -> qkv -> rope, cache -> attention -> o    -> residual += it; normed
           -> gate | up -> activation * up    -> down -> residual += it; normed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from octavo.models.rope import cos_sin_table
from octavo.models.spec import ArchSpec, RopeSpec
from octavo.ops.table import EmbeddingWeight, LinearWeight, Ops


class Batch(Protocol):
    """What a step's batch tells the model. T tokens of B sequences."""

    @property
    def token_ids(self) -> Tensor: ...  # int32 [T]
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


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """Packed matrices, and norms as float32 with the family's offset already added. o and down are [H, .]."""

    attn_norm: Tensor
    qkv: LinearWeight
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: LinearWeight
    attn_post_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: LinearWeight
    down: LinearWeight
    mlp_post_norm: Tensor | None


@dataclass(frozen=True, eq=False)
class ModelWeights:
    embedding: EmbeddingWeight
    layers: Sequence[LayerWeights]
    final_norm: Tensor
    lm_head: LinearWeight


class _Workspace:
    """The activations of one step, float32, for up to `capacity` tokens."""

    def __init__(self, spec: ArchSpec, capacity: int) -> None:
        self.capacity = capacity
        self.residual = torch.empty(capacity, spec.hidden_size)
        self.normed = torch.empty(capacity, spec.hidden_size)
        self.qkv = torch.empty(capacity, spec.qkv_size)
        self.attn = torch.empty(capacity, spec.num_heads * spec.head_dim)
        self.block_out = torch.empty(capacity, spec.hidden_size)
        self.gate_up = torch.empty(capacity, 2 * spec.intermediate_size)
        self.act = torch.empty(capacity, spec.intermediate_size)


class Transformer:
    """A loaded model. Not to be used by two threads at once: the workspace is one step's.

    `num_positions`: sequences are never longer. `max_num_batched_tokens`: what the workspace is made for; it
    grows if a step is larger.
    """

    def __init__(
        self, spec: ArchSpec, ops: Ops, weights: ModelWeights, max_num_batched_tokens: int, num_positions: int
    ) -> None:
        self.spec = spec
        self._ops = ops
        self._weights = weights
        self._workspace = _Workspace(spec, max_num_batched_tokens)
        self._logits = torch.empty(0, spec.vocab_size)
        tables: dict[RopeSpec, Tensor] = {}
        for layer in range(spec.num_layers):
            rope = spec.rope_of_layer(layer)
            if rope not in tables:
                tables[rope] = cos_sin_table(rope, spec.head_dim, num_positions)
        self._rope_tables = [tables[spec.rope_of_layer(layer)] for layer in range(spec.num_layers)]
        # The norm behind layer i is the one in front of layer i + 1.
        self._next_norms = [layer.attn_norm for layer in weights.layers[1:]] + [weights.final_norm]

    def forward(self, batch: Batch, kv_caches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Run the step's tokens; their keys and values go to the caches, one (k, v) a layer.

        Returns the hidden states behind the final norm, float32 [T, H]: a view, valid until the next call.
        """
        num_tokens = len(batch.token_ids)
        if num_tokens > self._workspace.capacity:
            self._workspace = _Workspace(self.spec, num_tokens)
        space, spec, ops, weights = self._workspace, self.spec, self._ops, self._weights
        residual, normed, qkv = space.residual[:num_tokens], space.normed[:num_tokens], space.qkv[:num_tokens]
        attn, block_out = space.attn[:num_tokens], space.block_out[:num_tokens]
        gate_up, act = space.gate_up[:num_tokens], space.act[:num_tokens]
        positions, slot_mapping = batch.positions, batch.slot_mapping
        block_tables, seq_lens, query_start_loc = batch.block_tables, batch.seq_lens, batch.query_start_loc
        linear, rms_norm, add_rms_norm = ops.linear, ops.rms_norm, ops.add_rms_norm
        eps, heads = spec.rms_norm_eps, (spec.num_heads, spec.num_kv_heads, spec.head_dim)

        ops.embedding(residual, batch.token_ids, weights.embedding, spec.embedding_scale)
        rms_norm(normed, residual, weights.layers[0].attn_norm, eps)
        for layer, (k, v), rope, window, next_norm in zip(
            weights.layers, kv_caches, self._rope_tables, spec.layer_windows, self._next_norms, strict=True
        ):
            linear(qkv, normed, layer.qkv)
            ops.rope_kv_write(qkv, positions, rope, layer.q_norm, layer.k_norm, eps, k, v, slot_mapping, *heads)
            ops.attention(
                attn, qkv, k, v, block_tables, seq_lens, query_start_loc, *heads,
                spec.attn_scale, window, spec.attn_softcap,
            )  # fmt: skip
            linear(block_out, attn, layer.o)
            if layer.attn_post_norm is not None:
                rms_norm(block_out, block_out, layer.attn_post_norm, eps)
            add_rms_norm(normed, residual, block_out, layer.mlp_norm, eps)
            linear(gate_up, normed, layer.gate_up)
            ops.act_mul(act, gate_up, spec.activation)
            linear(block_out, act, layer.down)
            if layer.mlp_post_norm is not None:
                rms_norm(block_out, block_out, layer.mlp_post_norm, eps)
            add_rms_norm(normed, residual, block_out, next_norm, eps)
        return normed

    def logits(self, rows: Tensor) -> Tensor:
        """float32 [S, V] for rows [S, H] of `forward`'s result: a view, valid until the next call, may be modified."""
        num_rows = len(rows)
        if num_rows > len(self._logits):
            # Grown by need: for all sequences a step may hold, it would often be the largest tensor of all.
            self._logits = torch.empty(max(num_rows, 2 * len(self._logits)), self.spec.vocab_size)
        logits = self._logits[:num_rows]
        self._ops.linear(logits, rows, self._weights.lm_head)
        cap = self.spec.logit_softcap
        if cap:
            # Row by row: where torch cuts a tensor into vectors must not depend on the number of rows.
            for row in logits:
                row.div_(cap).tanh_().mul_(cap)
        return logits
