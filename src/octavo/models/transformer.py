"""The decoder that all families share, run through the `Ops` table.

The residual stream is [T, H] of the table's activation type. Each block reads a normed copy of it and adds to it; the
addition and the norm of the next block are one operation, so that a layer is nine calls (and one more for each norm
behind a block), which `ops.layer_stack` makes for all layers:

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
from octavo.ops.layer_stack import StackLayer, StackShape, StepTensors, Workspace
from octavo.ops.table import EmbeddingWeight, LinearWeight, Ops


class Batch(StepTensors, Protocol):
    """What a step's batch tells the model. T tokens of B sequences."""

    @property
    def token_ids(self) -> Tensor: ...  # int32 [T]


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
        self._logits = self._empty_logits(0)
        tables: dict[RopeSpec, Tensor] = {}
        for layer in range(spec.num_layers):
            rope = spec.rope_of_layer(layer)
            if rope not in tables:
                tables[rope] = ops.to_device(cos_sin_table(rope, spec.head_dim, num_positions))
        self.shape = _shape(spec)
        self._workspace = self._new_workspace(max_num_batched_tokens)
        # The norm behind layer i is the one in front of layer i + 1.
        next_norms = [*(layer.attn_norm for layer in weights.layers[1:]), weights.final_norm]
        layers = [
            _stack_layer(layer, tables[spec.rope_of_layer(i)], spec.layer_windows[i], next_norms[i])
            for i, layer in enumerate(weights.layers)
        ]
        self._layers = ops.layer_stack(ops, self.shape, layers)

    def forward(self, batch: Batch, kv_caches: Sequence[tuple[Tensor, Tensor]], needed: Tensor | None = None) -> Tensor:
        """Run the step's tokens; their keys and values go to the caches, one (k, v) a layer.

        Returns the hidden states behind the final norm, [T, H] of the table's type, or [S, H] for the rows `needed`,
        int64 [S] in rising order: a view, valid until the next call.
        """
        num_tokens = len(batch.token_ids)
        if num_tokens > self._workspace.capacity:
            self._workspace = self._new_workspace(num_tokens)
        space, weights = self._workspace, self._weights
        residual, normed = space.residual[:num_tokens], space.normed[:num_tokens]
        self._ops.embedding(residual, batch.token_ids, weights.embedding, self.spec.embedding_scale)
        self._ops.rms_norm(normed, residual, weights.layers[0].attn_norm, self.spec.rms_norm_eps)
        self._layers.run(space, num_tokens, batch, kv_caches, needed)
        return normed if needed is None else normed[: len(needed)]

    def logits(self, rows: Tensor) -> Tensor:
        """float32 [S, V] for rows [S, H] of `forward`'s result: a view, valid until the next call, may be modified."""
        num_rows = len(rows)
        if num_rows > len(self._logits):
            # Grown by need: for all sequences a step may hold, it would often be the largest tensor of all.
            self._logits = self._empty_logits(max(num_rows, 2 * len(self._logits)))
        logits = self._logits[:num_rows]
        self._ops.linear(logits, rows, self._weights.lm_head)
        cap = self.spec.logit_softcap
        if cap:
            self._ops.soft_cap_(logits, cap)
        return logits

    def reserve(self, num_tokens: int, num_rows: int) -> None:
        """Make room for steps of `num_tokens` tokens and the logits of `num_rows` rows, so that up to these sizes all
        buffers keep their addresses."""
        if num_tokens > self._workspace.capacity:
            self._workspace = self._new_workspace(num_tokens)
        if num_rows > len(self._logits):
            self._logits = self._empty_logits(num_rows)

    def step_bytes(self, num_tokens: int, num_rows: int) -> int:
        """What the buffers take in a step of `num_tokens` tokens with the logits of `num_rows` rows, at most."""
        workspace = Workspace(self.shape, num_tokens, self._ops.activation_dtype, torch.device("meta"))
        # Logits grow by doubling.
        return workspace.nbytes + 2 * num_rows * self.spec.vocab_size * self._logits.itemsize

    def _new_workspace(self, num_tokens: int) -> Workspace:
        return Workspace(self.shape, num_tokens, self._ops.activation_dtype, self._ops.torch_device)

    def _empty_logits(self, num_rows: int) -> Tensor:
        return torch.empty(num_rows, self.spec.vocab_size, device=self._ops.torch_device)


def _shape(spec: ArchSpec) -> StackShape:
    return StackShape(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        eps=spec.rms_norm_eps,
        attn_scale=spec.attn_scale,
        softcap=spec.attn_softcap,
        activation=spec.activation,
    )


def _stack_layer(layer: LayerWeights, cos_sin: Tensor, window: int, next_norm: Tensor) -> StackLayer:
    return StackLayer(
        qkv=layer.qkv,
        o=layer.o,
        gate_up=layer.gate_up,
        down=layer.down,
        q_norm=layer.q_norm,
        k_norm=layer.k_norm,
        attn_post_norm=layer.attn_post_norm,
        mlp_norm=layer.mlp_norm,
        mlp_post_norm=layer.mlp_post_norm,
        next_norm=next_norm,
        cos_sin=cos_sin,
        window=window,
    )
