"""The layers of a step, kernel by kernel, with those fused that a GPU runs better as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from octavo.ops.layer_stack import KVCaches, LayerStack, StackLayer, StackShape, StepTensors, Table, Workspace
from octavo.ops.triton import elementwise, linear


class TritonLayerStack(LayerStack):
    """`LayerStack` for weights that `linear.LinearPacker` packed and a step that has an attention plan.

    Matrices with quantized inputs get them from the norm or the activation in front, which has the row in registers.
    """

    def __init__(self, ops: Table, shape: StackShape, layers: Sequence[StackLayer]) -> None:
        super().__init__(ops, shape, layers)
        self._quantized: dict[tuple[int, int, torch.dtype], tuple[Tensor, Tensor]] = {}  # buffers by shape

    def run(self, space: Workspace, num_tokens: int, step: StepTensors, kv_caches: KVCaches) -> None:
        shape, ops = self._shape, self._ops
        residual, normed, qkv = space.residual[:num_tokens], space.normed[:num_tokens], space.qkv[:num_tokens]
        attn, block_out = space.attn[:num_tokens], space.block_out[:num_tokens]
        plan = (step.block_tables, step.seq_lens, step.query_start_loc)
        eps, heads = shape.eps, (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        ready: Any = None  # the first block's input, if it is quantized already
        for i, (layer, (k, v)) in enumerate(zip(self._layers, kv_caches, strict=True)):
            self._product(qkv, normed, layer.qkv, ready)
            ops.rope_kv_write(
                qkv, step.positions, layer.cos_sin, layer.q_norm, layer.k_norm, eps, k, v, step.slot_mapping, *heads
            )
            ops.attention(
                attn,
                qkv,
                k,
                v,
                *plan,
                *heads,
                shape.attn_scale,
                layer.window,
                shape.softcap,
                plan=step.attention_plan,
            )
            self._product(block_out, attn, layer.o, None)
            if layer.attn_post_norm is not None:
                ops.rms_norm(block_out, block_out, layer.attn_post_norm, eps)
            ready = self._add_norm(normed, residual, block_out, layer.mlp_norm, layer.gate_up)
            self._mlp(block_out, normed, ready, layer, space, num_tokens)
            if layer.mlp_post_norm is not None:
                ops.rms_norm(block_out, block_out, layer.mlp_post_norm, eps)
            following = self._layers[i + 1].qkv if i + 1 < len(self._layers) else None
            ready = self._add_norm(normed, residual, block_out, layer.next_norm, following)
