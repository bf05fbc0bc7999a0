"""Adapters of low rank with the CPU's kernel (csrc/cpu/kernels/lora.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.lora import MAX_LORA_RANK, LoraWeights

_TYPES: Final = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class LoraBank:
    """`reference.lora_bank`. The kernel reads what was put in where it lies."""

    def __init__(self, columns: Sequence[int], K: int, num_slots: int, max_rank: int, dtype: torch.dtype) -> None:
        assert max_rank <= MAX_LORA_RANK
        self.native = _cpu.LoraBank(sum(columns), K, num_slots)
        self._kept: list[LoraWeights | None] = [None] * num_slots

    def put(self, slot: int, weights: LoraWeights | None) -> None:
        self._kept[slot] = weights
        if weights is None:
            self.native.clear(slot)
            return
        (dtype,) = {tensor.dtype for part in weights.parts for tensor in (part.a, part.b)} or {torch.float32}
        parts = []
        for part in weights.parts:
            rank, columns = part.b.shape
            assert part.a.shape == (rank, self.native.K) and rank <= MAX_LORA_RANK
            assert 0 <= part.first <= self.native.N - columns and part.a.is_contiguous() and part.b.is_contiguous()
            parts.append((part.first, columns, rank, part.a.data_ptr(), part.b.data_ptr(), part.scaling))
        scale, shift = (self._vector(each) for each in (weights.scale, weights.shift))
        self.native.put(slot, _TYPES[dtype], parts, scale, shift)

    def _vector(self, values: Tensor | None) -> int:
        if values is None:
            return 0
        assert values.dtype == torch.float32 and values.shape == (self.native.N,) and values.is_contiguous()
        return values.data_ptr()


lora_bank = LoraBank


def lora_delta(out: Tensor, x: Tensor, slots: Tensor, bank: LoraBank) -> None:
    rows = len(x)
    assert out.shape == (rows, bank.native.N) and x.shape == (rows, bank.native.K) and slots.shape == (rows,)
    assert out.dtype == x.dtype == torch.float32 and slots.dtype == torch.int32
    assert out.is_contiguous() and x.is_contiguous() and slots.is_contiguous()
    bank.native.add(out.data_ptr(), x.data_ptr(), slots.data_ptr(), rows)
