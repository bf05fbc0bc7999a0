"""Experts whose matrices stay small: integers or the values of a table, multiplied as `linear_int` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.linear_int import FORMS, Form, IntLinear, form_of, ptx_of, tile_of, unit_of
from octavo.ops.triton.linear_int_kernels import tile_products
from octavo.ops.triton.variants import TYPE_NAMES, Variant
from octavo.quant.packed import QuantizedWeight

#: Rows of a weight that a program takes, and rows of x where experts get few of them and where they get many.
_BLOCK_N: Final = 64
_FEW: Final = 16
_MANY: Final = 32


@dataclass(frozen=True, eq=False)
class IntExperts:
    """Matrices [E, N, K], and biases float32 [E, N] or none. `is_invariant`: tiles must not depend on the number of
    rows."""

    matrices: IntLinear  # all of them, one below the other
    bias: Tensor | None
    count: int
    is_invariant: bool

    @property
    def nbytes(self) -> int:
        return self.matrices.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        """What is held of them: memory is counted so."""
        held = (self.matrices.packed, self.matrices.scales, self.matrices.mins)
        return (each for each in held if each is not None)


def common_form(parts: Sequence[Tensor | QuantizedWeight]) -> Form | None:
    """The form of an expert's matrices, if they have one in which they stay small."""
    forms = {
        form_of(part) if isinstance(part, QuantizedWeight) and part.order is None else None for part in parts
    }  # fmt: skip
    return forms.pop() if len(forms) == 1 else None


def joined(matrices: Sequence[IntLinear]) -> IntLinear:
    """Matrices of one form, one below the other."""
    mins = [each.mins for each in matrices if each.mins is not None]
    return replace(
        matrices[0],
        packed=torch.cat([each.packed for each in matrices]),
        scales=torch.cat([each.scales for each in matrices], dim=1),
        mins=torch.cat(mins, dim=1) if mins else None,
    )


@triton.jit
def rows_of_tile(
    order, counts, rows_per_x, E: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr, BLOCK_M: tl.constexpr
):
    """The expert of the program's tile, E if there is none; its rows of the results, which of them exist, and where
    they are in x, which has one for each `rows_per_x` entries with GATHER, and else one for each place."""
    tile = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    all_counts = tl.load(counts + experts, mask=experts < E, other=0)
    tiles = (all_counts + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    is_mine = experts == expert
    first_tile = tl.sum(tl.where(is_mine, ends - tiles, 0), 0)
    begin = tl.sum(tl.where(experts < expert, all_counts, 0), 0)
    end = begin + tl.sum(tl.where(is_mine, all_counts, 0), 0)
    rows = begin + (tile - first_tile) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = rows < end
    sources = rows.to(tl.int64)
    if GATHER:
        sources = (tl.load(order + rows, mask=exists, other=0) // rows_per_x).to(tl.int64)
    return tl.minimum(expert, E), rows, exists, sources


@jit(chained=True)
def _int_product_kernel(
    out, x, w, scales, mins, table, bias, factors, order, counts, N, K, rows_per_x, stride_w, stride_s,
    E: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr, BITS: tl.constexpr, ZERO: tl.constexpr,
    TILE: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_MINS: tl.constexpr, UNPACK: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """A tile of the rows of one expert. factors, by entry, or none: what x is multiplied by."""
    wait_turn(CHAINED)
    expert, rows, exists, sources = rows_of_tile(order, counts, rows_per_x, E, BLOCK_E, GATHER, BLOCK_M)
    if expert < E:
        columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        in_n = columns < N
        n = expert * N + columns
        inner = tl.arange(0, TILE // 2)
        w_at = w + (n[:, None].to(tl.int64) * stride_w + inner[None, :])
        x_at = x + (sources[:, None] * K + inner[None, :])
        acc = tile_products(
            w_at, x_at, scales, mins, table, n, in_n, exists, 0, K, K, stride_s,
            BITS, ZERO, TILE, UNIT, GROUP, BLOCK_N, BLOCK_M, HAS_MINS, UNPACK, x.dtype.element_ty,
        )  # fmt: skip
        if factors is not None:
            entries = tl.load(order + rows, mask=exists, other=0)
            acc = acc * tl.load(factors + entries, mask=exists, other=0.0)[None, :]
        if bias is not None:
            acc = acc + tl.load(bias + n, mask=in_n, other=0.0)[:, None]
        target = out + (rows[None, :].to(tl.int64) * N + columns[:, None])
        tl.store(target, acc.to(out.dtype.element_ty), mask=in_n[:, None] & exists[None, :])


def int_product(
    out: Tensor, x: Tensor, weights: IntExperts, order: Tensor, counts: Tensor, many: bool, block_e: int,
    rows_per_x: int, factors: Tensor | None,
) -> None:  # fmt: skip
    """Each row of out [places, N] = its row of x times the matrix of its expert, and the bias. `many`: rows an expert
    gets. rows_per_x > 0: x has a row for so many entries, and not one for each place."""
    w, num_experts = weights.matrices, len(weights)
    n, block_m = w.N // num_experts, _MANY if many else _FEW
    most_tiles = min(len(out), triton.cdiv(len(out), block_m) + num_experts)
    _int_product_kernel[(most_tiles, triton.cdiv(n, _BLOCK_N))](
        out, x, w.packed, w.scales, w.mins, w.table, weights.bias, factors, order, counts, n, w.K, rows_per_x,
        w.packed.stride(0), w.scales.stride(0), E=num_experts, BLOCK_E=block_e, GATHER=rows_per_x > 0,
        **_constants(w.form, w.K, ptx_of(w.form, x.dtype) if x.is_cuda else ""), BLOCK_N=_BLOCK_N, BLOCK_M=block_m,
        num_warps=4, num_stages=4,
    )  # fmt: skip


def _constants(form: Form, k: int, unpack: str) -> dict[str, Any]:
    return {
        "BITS": form.bits, "ZERO": form.zero, "TILE": tile_of(k), "UNIT": unit_of(form, k), "GROUP": form.group,
        "HAS_MINS": form.has_mins, "UNPACK": unpack,
    }  # fmt: skip


def _variant(name: str, block_m: int, gather: bool) -> Variant:
    form = FORMS[name]
    numbers = dict.fromkeys(("N", "K", "rows_per_x", "stride_w", "stride_s"), "i32")
    pointers = {"out": "*bf16", "x": "*bf16", "w": "*u8", "scales": f"*{TYPE_NAMES[form.scale_dtype]}"}
    pointers |= {"order": "*i32", "counts": "*i32"}
    constexprs: dict[str, Any] = {
        "E": 128, "BLOCK_E": 128, "GATHER": gather, "BLOCK_N": _BLOCK_N, "BLOCK_M": block_m, "table": None,
        "bias": None, "factors": None, "mins": None, **_constants(form, 4096, ptx_of(form, torch.bfloat16)),
    }  # fmt: skip
    if form.has_mins:
        del constexprs["mins"]
        pointers["mins"] = pointers["scales"]
    return Variant(
        name=f"experts of {name}, {block_m} rows{', gathered' if gather else ''}",
        kernel=_int_product_kernel,
        signature={**pointers, **numbers},
        constexprs=constexprs,
        num_warps=4,
        num_stages=4,
        divisible=frozenset({*pointers, "N", "K", "stride_w", "stride_s"}),
    )


def variants() -> list[Variant]:
    found = [_variant(name, block_m, False) for name in FORMS for block_m in (_FEW, _MANY)]
    return [*found, _variant("GPTQ", _FEW, True)]
