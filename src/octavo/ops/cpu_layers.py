"""The layers of a step in one native call (csrc/cpu/layer_stack.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu import ACTIVATIONS, CACHE_DTYPES, MAX_HEAD_DIM, check_cache
from octavo.ops.layer_stack import KVCaches, LayerStack, StackLayer, StackShape, StepTensors, Table, Workspace


class CpuLayerStack(LayerStack):
    """`LayerStack` for weights that the native operations packed. Nothing is checked again from layer to layer."""

    def __init__(self, ops: Table, shape: StackShape, layers: Sequence[StackLayer]) -> None:
        super().__init__(ops, shape, layers)
        assert shape.head_dim <= MAX_HEAD_DIM and shape.head_dim % 2 == 0
        assert shape.num_heads % shape.num_kv_heads == 0
        self._native = _cpu.LayerStack(
            hidden=shape.hidden_size,
            intermediate=shape.intermediate_size,
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            eps=shape.eps,
            attn_scale=shape.attn_scale,
            softcap=shape.softcap,
            activation=ACTIVATIONS[shape.activation],
        )
        for layer in self._layers:
            self._add(layer)
        self._caches: KVCaches | None = None  # whose addresses the native stack has

    def _add(self, layer: StackLayer) -> None:
        shape = self._shape
        heads, hidden, inner = shape.num_heads * shape.head_dim, shape.hidden_size, shape.intermediate_size
        for weight, rows, columns in (
            (layer.qkv, shape.qkv_size, hidden),
            (layer.o, hidden, heads),
            (layer.gate_up, 2 * inner, hidden),
            (layer.down, hidden, inner),
        ):
            assert (rows, columns) == (weight.N, weight.K), (weight, rows, columns)
        assert layer.cos_sin.size(1) == shape.head_dim
        self._native.add(
            layer.qkv.native,
            layer.o.native,
            layer.gate_up.native,
            layer.down.native,
            _address(layer.q_norm, shape.head_dim),
            _address(layer.k_norm, shape.head_dim),
            _address(layer.attn_post_norm, hidden),
            _address(layer.mlp_norm, hidden),
            _address(layer.mlp_post_norm, hidden),
            _address(layer.next_norm, hidden),
            _address(layer.cos_sin, layer.cos_sin.numel()),
            layer.window,
        )

    def run(
        self,
        space: Workspace,
        num_tokens: int,
        step: StepTensors,
        kv_caches: KVCaches,
        needed: Tensor | None = None,
    ) -> None:
        if kv_caches is not self._caches:
            self._set_caches(kv_caches)
        assert num_tokens <= space.capacity
        block_tables = step.block_tables
        num_seqs, max_blocks = block_tables.shape
        assert step.positions.dtype == torch.int32 and step.slot_mapping.dtype == torch.int64
        assert step.positions.numel() == step.slot_mapping.numel() == num_tokens
        assert block_tables.dtype == step.seq_lens.dtype == step.query_start_loc.dtype == torch.int32
        assert block_tables.stride(1) == 1 and step.seq_lens.is_contiguous() and step.query_start_loc.is_contiguous()
        assert needed is None or (needed.dtype == torch.int64 and needed.is_contiguous())
        assert step.seq_lens.numel() == num_seqs and step.query_start_loc.numel() == num_seqs + 1
        self._native.run(
            space.residual.data_ptr(),
            space.normed.data_ptr(),
            space.qkv.data_ptr(),
            space.attn.data_ptr(),
            space.block_out.data_ptr(),
            space.gate_up.data_ptr(),
            space.act.data_ptr(),
            step.positions.data_ptr(),
            step.slot_mapping.data_ptr(),
            block_tables.data_ptr(),
            block_tables.stride(0) if num_seqs > 1 else max_blocks,
            step.seq_lens.data_ptr(),
            step.query_start_loc.data_ptr(),
            num_seqs,
            num_tokens,
            0 if needed is None else needed.data_ptr(),
            0 if needed is None else needed.numel(),
        )

    def _set_caches(self, kv_caches: KVCaches) -> None:
        for k, v in kv_caches:
            check_cache(k, v, self._shape.num_kv_heads, self._shape.head_dim)
        first_k, first_v = kv_caches[0]
        assert all(k.dtype == first_k.dtype and v.shape == first_v.shape for k, v in kv_caches)
        addresses = [(k.data_ptr(), v.data_ptr()) for k, v in kv_caches]
        self._native.set_caches(addresses, CACHE_DTYPES[first_k.dtype], first_v.shape[2])
        self._caches = kv_caches


def _address(weight: Tensor | None, size: int) -> int:
    if weight is None:
        return 0
    assert weight.dtype == torch.float32 and weight.is_contiguous() and weight.numel() == size
    return weight.data_ptr()


layer_stack = CpuLayerStack
