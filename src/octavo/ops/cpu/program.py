"""A program in one native call a step (csrc/cpu/program.h)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.kernels import (
    CACHE_DTYPES,
    check_cache,
    check_latent,
)
from octavo.ops.cpu.records import Recorder
from octavo.ops.operands import Latent
from octavo.ops.operations import (
    Attend,
    GatherRotation,
    GivenRows,
    MergeRows,
    ReplaceRows,
)
from octavo.ops.program import Program
from octavo.ops.run import Runner, Table, Weights
from octavo.ops.step import KVCaches, StepTensors
from octavo.ops.workspace import Workspace


class CpuRunner(Runner):
    """`Runner` for weights that the native operations packed. Nothing is checked again from operation to operation."""

    def __init__(self, table: Table, program: Program, weights: Weights) -> None:
        super().__init__(table, program, weights)
        self._native = _cpu.Program()
        self._ids = Recorder(self._native, program, weights).ids
        parts = [max(op.parts) + 1 for op in program.ops if isinstance(op, GatherRotation)]
        self._num_parts = max(parts, default=0)
        self._replaced_width = max(
            (op.first + op.x.width for op in program.ops if isinstance(op, ReplaceRows)), default=0
        )
        self._merged = math.prod(op.count for op in program.ops if isinstance(op, MergeRows))
        self._num_groups = 1 + max((cache.group for cache in program.caches), default=-1)
        self._sees_encoder = any(isinstance(op, Attend) and op.cache.of_encoder for op in program.ops)
        self._input_width = next((op.out.width for op in program.ops if isinstance(op, GivenRows)), None)
        # Whose addresses the native program has.
        self._space: Workspace | None = None
        self._caches: KVCaches | None = None

    def run(self, space: Workspace, step: StepTensors, kv_caches: KVCaches, needed: Tensor | None = None) -> Tensor:
        if kv_caches is not self._caches:
            self._set_caches(kv_caches)
        if space is not self._space:
            self._set_buffers(space)
        num_tokens, num_seqs = step.token_ids.numel(), step.seq_lens.numel()
        assert num_tokens <= space.capacity and len(step.cache_groups) == self._num_groups
        assert step.token_ids.dtype == step.positions.dtype == torch.int32
        assert step.token_ids.is_contiguous() and step.positions.numel() == num_tokens
        assert step.seq_lens.dtype == step.query_start_loc.dtype == torch.int32
        assert step.seq_lens.is_contiguous() and step.query_start_loc.is_contiguous()
        assert step.query_start_loc.numel() == num_seqs + 1
        assert needed is None or (needed.dtype == torch.int64 and needed.is_contiguous())
        if self._num_parts:
            self._set_position_parts(step, num_tokens)
        if self._replaced_width:
            self._set_replaced_rows(step)
        self._native.run(
            rows=num_tokens,
            token_ids=step.token_ids.data_ptr(),
            positions=step.positions.data_ptr(),
            seq_lens=step.seq_lens.data_ptr(),
            query_start_loc=step.query_start_loc.data_ptr(),
            num_seqs=num_seqs,
            groups=[_group(*group, num_tokens, num_seqs) for group in step.cache_groups],
            state_slots=self._state_slots(step),
            input_rows=self._input_rows(step, num_tokens),
            key_ends=_ints(step.key_ends, num_tokens),
            encoder_lens=self._encoder_lens(step),
            needed=0 if needed is None else needed.data_ptr(),
            num_needed=0 if needed is None else needed.numel(),
            adapter_slots=_adapter_slots(step.adapter_slots, num_tokens),
        )
        num_rows = num_tokens if needed is None else needed.numel()
        return space[self.program.output][: num_rows // self._merged]

    def _set_position_parts(self, step: StepTensors, num_tokens: int) -> None:
        parts = step.position_parts
        if parts is None:
            self._native.set_position_parts(parts=0)
            return
        assert parts.shape == (self._num_parts, num_tokens) and parts.dtype == torch.int32 and parts.is_contiguous()
        self._native.set_position_parts(parts=parts.data_ptr())

    def _set_replaced_rows(self, step: StepTensors) -> None:
        rows, index = step.replaced_rows, step.replaced_index
        if rows is None or index is None:
            self._native.set_replaced_rows(rows=0, index=0, count=0, stride=0)
            return
        assert rows.dtype == torch.float32 and rows.is_contiguous()
        assert rows.shape == (index.numel(), self._replaced_width)
        assert index.dtype == torch.int64 and index.is_contiguous()
        self._native.set_replaced_rows(
            rows=rows.data_ptr(), index=index.data_ptr(), count=index.numel(), stride=rows.shape[1]
        )

    def _state_slots(self, step: StepTensors) -> int:
        if not self.program.states:
            return 0
        slots = step.state_slots
        assert slots is not None and slots.dtype == torch.int32 and slots.numel() == step.seq_lens.numel()
        address: int = slots.data_ptr()
        return address

    def _input_rows(self, step: StepTensors, num_tokens: int) -> int:
        if self._input_width is None:
            return 0
        rows = step.input_rows
        assert rows is not None and rows.shape == (num_tokens, self._input_width)
        assert rows.dtype == torch.float32 and rows.is_contiguous()
        address: int = rows.data_ptr()
        return address

    def _encoder_lens(self, step: StepTensors) -> int:
        if not self._sees_encoder:
            return 0
        assert step.encoder_lens is not None
        return _ints(step.encoder_lens, step.seq_lens.numel())

    def _set_caches(self, kv_caches: KVCaches) -> None:
        num_caches = len(self.program.caches)
        states = [state for (state,) in kv_caches[num_caches:]]
        for state, array in zip(self.program.states, states, strict=True):
            assert array.shape[1:] == state.shape and array.dtype == torch.float32 and array.is_contiguous()
        self._native.set_states([state.data_ptr() for state in states])
        if num_caches:
            self._set_kv_caches(kv_caches[:num_caches])
        self._caches = kv_caches

    def _set_kv_caches(self, kv_caches: KVCaches) -> None:
        dtype, block_sizes = kv_caches[0][0].dtype, set()
        for cache, arrays in zip(self.program.caches, kv_caches, strict=True):
            if isinstance(cache.heads, Latent):
                block_sizes.add(check_latent(cache.heads, *arrays))
            else:
                k, v = arrays
                block_sizes.add(check_cache(k, v, cache.heads.num_kv_heads, cache.heads.head_dim))
            assert arrays[0].dtype == dtype
        (block_size,) = block_sizes
        self._native.set_caches(
            caches=[(k.data_ptr(), v.data_ptr(), k.stride(0), v.stride(0)) for k, v in map(_twice, kv_caches)],
            cache_type=CACHE_DTYPES[dtype],
            block_size=block_size,
        )

    def _set_buffers(self, space: Workspace) -> None:
        for buffer in self._ids:
            assert space[buffer].dtype in (torch.float32, torch.int32)
        self._native.set_buffers(addresses=[space[buffer].data_ptr() for buffer in self._ids])
        self._space = space


def _twice(arrays: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The rows of a latent, as keys and as values."""
    return arrays if len(arrays) > 1 else arrays * 2


def _adapter_slots(slots: Tensor | None, num_tokens: int) -> int:
    if slots is None:
        return 0
    assert slots.dtype == torch.int32 and slots.is_contiguous() and slots.numel() == num_tokens
    return slots.data_ptr()


def _group(block_tables: Tensor, slot_mapping: Tensor, num_tokens: int, num_seqs: int) -> tuple[int, int, int]:
    assert block_tables.dtype == torch.int32 and slot_mapping.dtype == torch.int64
    assert block_tables.shape[0] == num_seqs and slot_mapping.numel() == num_tokens
    assert block_tables.stride(1) == 1 and slot_mapping.is_contiguous()
    stride = block_tables.stride(0) if num_seqs > 1 else block_tables.shape[1]
    return block_tables.data_ptr(), stride, slot_mapping.data_ptr()


def _ints(values: Tensor | None, count: int) -> int:
    """The address of int32 [count], 0 for None."""
    if values is None:
        return 0
    assert values.dtype == torch.int32 and values.numel() == count and values.is_contiguous()
    address: int = values.data_ptr()
    return address


program_runner = CpuRunner
