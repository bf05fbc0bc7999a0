"""Adapters of low rank on a GPU: two launches a product, for rows of any adapters and of none.

The adapters of a product lie side by side, padded to the highest rank, so that their places never change. A tile of
rows goes through the slots between its lowest and its highest; rows of other slots count as zeros, which no sum feels.
Sums along K are cut at fixed places, and a row's result is the same in any company.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.lora import LoraWeights
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

#: Rows of a tile; columns of x that one program sums up; values along K, and columns of out, of a tile.
_ROWS: Final = 16
_SPLIT: Final = 1024
_BLOCK_K: Final = 64
_BLOCK_N: Final = 64
_BLOCK_R: Final = 16


class LoraBank:
    """`reference.lora_bank`."""

    def __init__(
        self,
        columns: Sequence[int],
        K: int,
        num_slots: int,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.N, self.K = sum(columns), K
        self.rank = triton.next_power_of_2(max(_BLOCK_R, max_rank))  # of each part, padded
        self.num_parts = len(columns)
        self.a = torch.zeros(num_slots, self.num_parts * self.rank, K, dtype=dtype, device=device)
        self.b = torch.zeros(num_slots, self.N, self.rank, dtype=dtype, device=device)
        self.scalings = torch.zeros(num_slots, self.num_parts, device=device)
        self.scale = torch.ones(num_slots, self.N, device=device)
        self.shift = torch.zeros(num_slots, self.N, device=device)
        self._firsts = [sum(columns[:part]) for part in range(len(columns))]
        blocks = [
            (part, first + at, min(_BLOCK_N, count - at))
            for part, (first, count) in enumerate(zip(self._firsts, columns, strict=True))
            for at in range(0, count, _BLOCK_N)
        ]
        self.blocks = torch.tensor(blocks, dtype=torch.int32, device=device)

    def put(self, slot: int, weights: LoraWeights | None) -> None:
        for each in (self.a, self.b, self.scalings, self.shift):
            each[slot].zero_()
        self.scale[slot].fill_(1.0)
        if weights is None:
            return
        for part in weights.parts:
            number, (rank, columns) = self._firsts.index(part.first), part.b.shape
            self.a[slot, number * self.rank : number * self.rank + rank].copy_(part.a)
            self.b[slot, part.first : part.first + columns, :rank].copy_(part.b.t())
            self.scalings[slot, number] = part.scaling
        if weights.scale is not None:
            self.scale[slot].copy_(weights.scale)
        if weights.shift is not None:
            self.shift[slot].copy_(weights.shift)


@jit
def _shrink_kernel(
    t, x, slots, a, num_rows,
    K: tl.constexpr, RANKS: tl.constexpr, ROWS: tl.constexpr, SPLIT: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """t [splits, rows, RANKS]: of each row, the part of x a^T that a split of K gives."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    split, ranks = tl.program_id(1), tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    exists = rows < num_rows
    slot = tl.load(slots + rows, mask=exists, other=-1)
    low, high = tl.min(tl.where(slot < 0, 1 << 30, slot), 0), tl.max(slot, 0)
    at = tl.arange(0, BLOCK_K)
    acc = tl.zeros((ROWS, BLOCK_R), tl.float32)
    for each in range(low, high + 1):
        mine = slot == each
        if tl.max(mine.to(tl.int32), 0) > 0:
            for first in range(0, SPLIT, BLOCK_K):
                columns = split * SPLIT + first + at
                inside = columns < K
                left = tl.load(
                    x + rows.to(tl.int64)[:, None] * K + columns[None, :],
                    mask=mine[:, None] & inside[None, :],
                    other=0.0,
                )
                right = tl.load(
                    a + (tl.cast(each, tl.int64) * RANKS + ranks[None, :]) * K + columns[:, None],
                    mask=inside[:, None],
                    other=0.0,
                )
                acc = tl.dot(left, right.to(left.dtype), acc, input_precision=PRECISION)
    place = t + (split.to(tl.int64) * num_rows + rows[:, None]) * RANKS + ranks[None, :]
    tl.store(place, acc, mask=exists[:, None])


@jit
def _expand_kernel(
    out, t, slots, b, scalings, scale, shift, blocks, num_rows,
    N: tl.constexpr, PARTS: tl.constexpr, RANK: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = (out + scaling * t b) * scale + shift."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exists = rows < num_rows
    slot = tl.load(slots + rows, mask=exists, other=-1)
    low, high = tl.min(tl.where(slot < 0, 1 << 30, slot), 0), tl.max(slot, 0)
    block = blocks + tl.program_id(1) * 3
    part, first, count = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    offsets = tl.arange(0, BLOCK_N)
    columns, inside = first + offsets, offsets < count
    ranks = tl.arange(0, BLOCK_R)
    acc = tl.zeros((ROWS, BLOCK_N), tl.float32)
    for each in range(low, high + 1):
        mine = slot == each
        if tl.max(mine.to(tl.int32), 0) > 0:
            scaling = tl.load(scalings + each * PARTS + part)
            for at in range(0, RANK, BLOCK_R):
                left = tl.zeros((ROWS, BLOCK_R), tl.float32)
                for split in range(SPLITS):
                    place = (
                        (split * num_rows + rows.to(tl.int64)[:, None]) * (PARTS * RANK)
                        + part * RANK
                        + at
                        + ranks[None, :]
                    )
                    left += tl.load(t + place, mask=mine[:, None], other=0.0)
                right = tl.load(
                    b + (tl.cast(each, tl.int64) * N + columns[None, :]) * RANK + at + ranks[:, None],
                    mask=inside[None, :], other=0.0,
                )  # fmt: skip
                acc = tl.dot((left * scaling).to(right.dtype), right, acc, input_precision=PRECISION)
    mask = exists[:, None] & inside[None, :] & (slot >= 0)[:, None]
    place = out + rows.to(tl.int64)[:, None] * N + columns[None, :]
    of_slot = slot.to(tl.int64)[:, None] * N + columns[None, :]
    found = (tl.load(place, mask=mask, other=0.0).to(tl.float32) + acc) * tl.load(scale + of_slot, mask=mask, other=1.0)
    found += tl.load(shift + of_slot, mask=mask, other=0.0)
    tl.store(place, found.to(out.dtype.element_ty), mask=mask)


def lora_delta(out: Tensor, x: Tensor, slots: Tensor, bank: LoraBank) -> None:
    """`reference.lora_delta`. Launches only, so that it can be captured."""
    num_rows = len(x)
    if num_rows == 0:
        return
    ranks, splits = bank.num_parts * bank.rank, triton.cdiv(bank.K, _SPLIT)
    t = torch.empty(splits, num_rows, ranks, device=x.device)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    tiles = triton.cdiv(num_rows, _ROWS)
    _shrink_kernel[(tiles, splits, ranks // _BLOCK_R)](
        t, x, slots, bank.a, num_rows,
        K=bank.K, RANKS=ranks, ROWS=_ROWS, SPLIT=_SPLIT, BLOCK_K=_BLOCK_K, BLOCK_R=_BLOCK_R, PRECISION=precision,
    )  # fmt: skip
    _expand_kernel[(tiles, len(bank.blocks))](
        out, t, slots, bank.b, bank.scalings, bank.scale, bank.shift, bank.blocks, num_rows,
        N=bank.N, PARTS=bank.num_parts, RANK=bank.rank, SPLITS=splits, ROWS=_ROWS, BLOCK_N=_BLOCK_N, BLOCK_R=_BLOCK_R,
        PRECISION="ieee" if bank.b.dtype == torch.float32 else "tf32",
    )  # fmt: skip


def variants() -> list[Variant]:
    found = []
    for rank, parts, K, N in ((16, 3, 4096, 6144), (64, 1, 11008, 4096)):
        sizes: dict[str, Any] = {"ROWS": _ROWS, "BLOCK_R": _BLOCK_R, "PRECISION": "tf32"}
        pointers = {"t": "*fp32", "slots": "*i32"}
        own = {"x": "*bf16", "a": "*bf16"}
        found.append(
            Variant(
                name=f"shrink {parts} x {rank}",
                kernel=_shrink_kernel,
                signature=pointers | own | {"num_rows": "i32"},
                constexprs=sizes | {"K": K, "RANKS": parts * rank, "SPLIT": _SPLIT, "BLOCK_K": _BLOCK_K},
                divisible=frozenset({*pointers, *own}),
            )
        )
        own = {"out": "*bf16", "b": "*bf16", "scalings": "*fp32", "scale": "*fp32", "shift": "*fp32", "blocks": "*i32"}
        found.append(
            Variant(
                name=f"expand {parts} x {rank}",
                kernel=_expand_kernel,
                signature=pointers | own | {"num_rows": "i32"},
                constexprs=sizes
                | {"N": N, "PARTS": parts, "RANK": rank, "SPLITS": triton.cdiv(K, _SPLIT), "BLOCK_N": _BLOCK_N},
                divisible=frozenset({*pointers, *own}),
            )
        )
    return found
