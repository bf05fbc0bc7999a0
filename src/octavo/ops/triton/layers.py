"""The layers of a step, kernel by kernel, with those fused that a GPU runs better as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.ops.layer_stack import KVCaches, LayerStack, StackLayer, StackShape, StepTensors, Table, Workspace
from octavo.ops.triton import elementwise, linear
from octavo.ops.triton.linear import LinearWeight

#: A matrix's input, quantized: values [T, K] and the scale of each row, float32 [T, 1].
_Quantized = tuple[Tensor, Tensor]


class TritonLayerStack(LayerStack):
    """`LayerStack` for weights that `linear.LinearPacker` packed, and steps that have an attention plan.

    A matrix whose input is quantized gets it from the norm or the activation in front, which has the row at hand.
    """

    def __init__(self, ops: Table, shape: StackShape, layers: Sequence[StackLayer]) -> None:
        super().__init__(ops, shape, layers)
        self._spaces: dict[int, tuple[Tensor, Tensor]] = {}  # width -> values, scales of as many rows as a workspace

    def run(
        self,
        space: Workspace,
        num_tokens: int,
        step: StepTensors,
        kv_caches: KVCaches,
        needed: Tensor | None = None,
    ) -> None:
        shape, ops = self._shape, self._ops
        residual, normed, qkv = space.residual[:num_tokens], space.normed[:num_tokens], space.qkv[:num_tokens]
        attn, block_out = space.attn[:num_tokens], space.block_out[:num_tokens]
        plan = (step.block_tables, step.seq_lens, step.query_start_loc)
        eps, heads = shape.eps, (shape.num_heads, shape.num_kv_heads, shape.head_dim)
        ready: _Quantized | None = None  # the next matrix's input, where the norm in front has quantized it
        following: list[LinearWeight | None] = [*(layer.qkv for layer in self._layers[1:]), None]
        for layer, next_qkv, (k, v) in zip(self._layers, following, kv_caches, strict=True):
            self._product(qkv, normed, layer.qkv, ready)
            ops.rope_kv_write(
                qkv, step.positions, layer.cos_sin, layer.q_norm, layer.k_norm, eps, k, v, step.slot_mapping, *heads
            )
            ops.attention(
                attn, qkv, k, v, *plan, *heads, shape.attn_scale, layer.window, shape.softcap, plan=step.attention_plan
            )
            if needed is not None and next_qkv is None:
                # In place: the rows that are read have not been written before, for needed[i] >= i.
                num_tokens = len(needed)
                attn[:num_tokens], residual[:num_tokens] = attn[needed], residual[needed]
                residual, normed = residual[:num_tokens], normed[:num_tokens]
                attn, block_out = attn[:num_tokens], block_out[:num_tokens]
            linear.linear(block_out, attn, layer.o)
            if layer.attn_post_norm is not None:
                ops.rms_norm(block_out, block_out, layer.attn_post_norm, eps)
            ready = self._add_norm(space, normed, residual, block_out, layer.mlp_norm, layer.gate_up)
            self._mlp(space, block_out, normed, ready, layer)
            if layer.mlp_post_norm is not None:
                ops.rms_norm(block_out, block_out, layer.mlp_post_norm, eps)
            ready = self._add_norm(space, normed, residual, block_out, layer.next_norm, next_qkv)

    def _mlp(self, space: Workspace, out: Tensor, normed: Tensor, ready: _Quantized | None, layer: StackLayer) -> None:
        num_tokens, kind = len(out), self._shape.activation
        if ready is None and linear.has_fused_act(layer.gate_up, num_tokens):
            act = space.act[:num_tokens]
            linear.linear_act(act, normed, layer.gate_up, kind)
            linear.linear(out, act, layer.down)
            return
        gate_up = space.gate_up[:num_tokens]
        self._product(gate_up, normed, layer.gate_up, ready)
        if linear.quantized_dtype(layer.down) is not None:
            values, scales = self._space(space, num_tokens, layer.down)
            elementwise.act_mul_quant(values, scales, gate_up, kind)
            linear.linear_quantized(out, values, scales, layer.down)
        else:
            act = space.act[:num_tokens]
            self._ops.act_mul(act, gate_up, kind)
            linear.linear(out, act, layer.down)

    def _product(self, out: Tensor, x: Tensor, weight: LinearWeight, ready: _Quantized | None) -> None:
        if ready is None:
            linear.linear(out, x, weight)
        else:
            linear.linear_quantized(out, *ready, weight)

    def _add_norm(
        self, space: Workspace, normed: Tensor, residual: Tensor, x: Tensor, norm: Tensor, into: LinearWeight | None
    ) -> _Quantized | None:
        """residual += x and its norm, as the matrix `into` wants it: in `normed`, or quantized and returned."""
        if into is None or linear.quantized_dtype(into) is None:
            self._ops.add_rms_norm(normed, residual, x, norm, self._shape.eps)
            return None
        values, scales = self._space(space, len(x), into)
        elementwise.add_rms_norm_quant(values, scales, residual, x, norm, self._shape.eps)
        return values, scales

    def _space(self, space: Workspace, num_tokens: int, weight: LinearWeight) -> _Quantized:
        """Room for the quantized input of a matrix."""
        known = self._spaces.get(weight.K)
        if known is None or len(known[0]) < num_tokens:
            values = torch.empty(
                space.capacity, weight.K, dtype=linear.quantized_dtype(weight), device=space.normed.device
            )
            known = values, torch.empty(space.capacity, 1, device=space.normed.device)
            self._spaces[weight.K] = known
        return known[0][:num_tokens], known[1][:num_tokens]
