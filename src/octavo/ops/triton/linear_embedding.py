"""Rows of an embedding table: of a dense matrix, or of an integer one that a tied output layer shares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.linear_int import IntLinear
from octavo.ops.triton.variants import TYPE_NAMES, Variant

_BLOCK = 1024


@jit(chained=True)
def _gather_kernel(
    out, ids, table, K, factor, stride_out, stride_table, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False
):
    """out [T, K] = factor * table[ids]. A program takes BLOCK columns of a row."""
    wait_turn(CHAINED)
    t = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(ids + t).to(tl.int64)
    value = tl.load(table + row * stride_table + k, mask=k < K, other=0.0).to(tl.float32) * factor
    tl.store(out + t * stride_out + k, value.to(out.dtype.element_ty), mask=k < K)


@dataclass(frozen=True, eq=False)
class Embedding:
    """A [N, K] table; `nbytes` is what one use reads, a row. `table` may be the memory of a LinearWeight."""

    table: Tensor | IntLinear
    K: int

    @property
    def N(self) -> int:
        return len(self.table) if isinstance(self.table, Tensor) else self.table.N

    @property
    def nbytes(self) -> int:
        return self.table.nbytes // self.N

    @property
    def kind(self) -> str:
        return str(self.table.dtype).removeprefix("torch.") if isinstance(self.table, Tensor) else self.table.kind


def embedding(out: Tensor, ids: Tensor, w: Embedding, scale: float = 1.0) -> None:
    """out [T, K] = scale * w[ids], rounded once; ids int32 [T], all in [0, N)."""
    if len(ids) == 0:
        return
    if isinstance(w.table, IntLinear):
        w.table.write_rows(out, ids, factor=scale)
        return
    _gather_kernel[(len(ids), triton.cdiv(w.K, _BLOCK))](
        out, ids, w.table, w.K, scale, out.stride(0), w.table.stride(0), _BLOCK
    )


def variants() -> list[Variant]:
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        signature = {"out": f"*{TYPE_NAMES[dtype]}", "table": f"*{TYPE_NAMES[dtype]}", "ids": "*i32", "factor": "fp32"}
        signature |= dict.fromkeys(("K", "stride_out", "stride_table"), "i32")
        divisible = frozenset(name for name in signature if name != "factor")
        found.append(Variant(
            name=f"embedding {TYPE_NAMES[dtype]}", kernel=_gather_kernel, signature=signature,
            constexprs={"BLOCK": _BLOCK}, divisible=divisible,
        ))  # fmt: skip
    return found
