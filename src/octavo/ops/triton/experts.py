"""A mixture of experts: the choice, rows grouped by expert, and one product a group, all on the device.

No step waits for the host: how many rows an expert gets is known on the device alone, so that launches are made for the
most tiles that there can be, and those beyond the last do nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton import elementwise
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant
from octavo.quant.packed import QuantizedWeight

#: Entries that a program of the sort reads at once, and columns of one that combines.
_ENTRIES: Final = 1024
_COLUMNS: Final = 1024
#: Rows of a tile where experts get few, and where they get many; columns, and values along K.
_FEW: Final = 16
_MANY: Final = 64
_BLOCK_N: Final = 64
_BLOCK_K: Final = 64


@dataclass(frozen=True, eq=False)
class ExpertsWeight:
    """Matrices [E, N, K] of the activations' type. `is_invariant`: tiles must not depend on the number of rows."""

    weight: Tensor
    is_invariant: bool

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __len__(self) -> int:
        return len(self.weight)

    def __iter__(self) -> Any:
        return iter(self.weight)


def pack_experts(
    weights: Iterable[Sequence[Tensor | QuantizedWeight]],
    dtype: torch.dtype,
    to_device: Callable[[Tensor], Tensor],
    is_invariant: bool,
) -> ExpertsWeight:
    """For each expert its matrices, [N_i, K] one below the other. Quantized ones are held as floats."""
    packed = []
    for parts in weights:
        dense = [part.dequantize() if isinstance(part, QuantizedWeight) else part for part in parts]
        packed.append(torch.cat([to_device(part).to(dtype) for part in dense]))
    return ExpertsWeight(torch.stack(packed), is_invariant)


@jit
def _route_kernel(
    ids, weights, scores, RENORMALIZE: tl.constexpr, E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One row."""
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    values = tl.load(scores + row * E + experts, mask=experts < E, other=float("-inf")).to(tl.float32)
    high = tl.max(values, 0)
    total = tl.sum(tl.exp(values - high), 0)
    left = values
    taken = experts >= E
    chosen = 0.0
    for j in tl.static_range(K):
        best = tl.max(tl.where(taken, float("-inf"), left), 0)
        expert = tl.min(tl.where((left == best) & (taken == 0), experts, BLOCK), 0)
        expert = tl.minimum(expert, E - 1)  # no score is equal to itself where one is not a number
        weight = tl.exp(best - high)
        chosen += weight
        tl.store(ids + row * K + j, expert)
        tl.store(weights + row * K + j, weight / total)
        taken = taken | (experts == expert)
    if RENORMALIZE:
        for j in tl.static_range(K):
            weight = tl.load(weights + row * K + j)
            tl.store(weights + row * K + j, weight * (total / chosen))


@jit(do_not_specialize=["count"])
def _count_kernel(counts, ids, count, BLOCK: tl.constexpr):
    """How many of the entries name an expert."""
    expert = tl.program_id(0)
    total = 0
    for at in range(0, count, BLOCK):
        entries = at + tl.arange(0, BLOCK)
        total += tl.sum((tl.load(ids + entries, mask=entries < count, other=-1) == expert).to(tl.int32), 0)
    tl.store(counts + expert, total)


@jit(do_not_specialize=["count"])
def _place_kernel(places, order, counts, ids, count, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK: tl.constexpr):
    """The entries of an expert go to consecutive places, in their order; order[place] is the entry."""
    expert = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    begin = tl.sum(tl.load(counts + experts, mask=experts < expert, other=0), 0)
    for at in range(0, count, BLOCK):
        entries = at + tl.arange(0, BLOCK)
        mine = (tl.load(ids + entries, mask=entries < count, other=-1) == expert).to(tl.int32)
        place = begin + tl.cumsum(mine, 0) - 1
        tl.store(places + entries, place, mask=mine == 1)
        tl.store(order + place, entries, mask=mine == 1)
        begin += tl.sum(mine, 0)


@jit
def _product_kernel(
    out, x, weight, order, counts, N, K, rows_per_x,
    E: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of the rows of one expert. GATHER: x has a row for each `rows_per_x` entries, not one for each place."""
    tile = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    all_counts = tl.load(counts + experts, mask=experts < E, other=0)
    tiles = (all_counts + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(tiles, 0)
    expert = tl.sum((ends <= tile).to(tl.int32), 0)
    if expert < E:
        is_mine = experts == expert
        first_tile = tl.sum(tl.where(is_mine, ends - tiles, 0), 0)
        begin = tl.sum(tl.where(experts < expert, all_counts, 0), 0)
        end = begin + tl.sum(tl.where(is_mine, all_counts, 0), 0)
        rows = begin + (tile - first_tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        exists = rows < end
        columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        sources = rows.to(tl.int64)
        if GATHER:
            sources = (tl.load(order + rows, mask=exists, other=0) // rows_per_x).to(tl.int64)
        matrix = weight + expert.to(tl.int64) * N * K
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            a = tl.load(x + sources[:, None] * K + ks[None, :], mask=exists[:, None] & (ks < K)[None, :], other=0.0)
            b_mask = (columns < N)[:, None] & (ks < K)[None, :]
            b = tl.load(matrix + columns[:, None].to(tl.int64) * K + ks[None, :], mask=b_mask, other=0.0)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        target = out + rows[:, None].to(tl.int64) * N + columns[None, :]
        tl.store(target, acc.to(out.dtype.element_ty), mask=exists[:, None] & (columns < N)[None, :])


@jit
def _combine_kernel(out, y, places, weights, width, K: tl.constexpr, BLOCK: tl.constexpr):
    """The sum over a row's experts, in their order."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    acc = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(K):
        place = tl.load(places + row * K + j).to(tl.int64)
        weight = tl.load(weights + row * K + j)
        acc += weight * tl.load(y + place * width + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, acc.to(out.dtype.element_ty), mask=mask)


def route(ids: Tensor, weights: Tensor, scores: Tensor, renormalize: bool) -> None:
    """`reference.route`."""
    rows, num_experts = scores.shape
    if rows:
        block = triton.next_power_of_2(num_experts)
        _route_kernel[(rows,)](
            ids, weights, scores, RENORMALIZE=renormalize, E=num_experts, K=ids.shape[1], BLOCK=block, num_warps=1
        )


def experts(
    out: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up_weights: ExpertsWeight,
    down_weights: ExpertsWeight,
    kind: str,
    *,
    places: Tensor,
    grouped: Tensor,
    gate_up: Tensor,
    act: Tensor,
) -> None:
    """`experts.grouped_experts`. Results of an expert are rounded to the activations' type before they are added."""
    num_rows, top_k = ids.shape
    if num_rows == 0:
        return
    count, num_experts, width = num_rows * top_k, len(gate_up_weights), x.shape[1]
    block_e = triton.next_power_of_2(num_experts)
    counts = torch.empty(num_experts, dtype=torch.int32, device=x.device)
    order = torch.empty(count, dtype=torch.int32, device=x.device)
    _count_kernel[(num_experts,)](counts, ids, count, BLOCK=_ENTRIES)
    _place_kernel[(num_experts,)](places, order, counts, ids, count, E=num_experts, BLOCK_E=block_e, BLOCK=_ENTRIES)
    many = count >= _MANY // 2 * num_experts and not gate_up_weights.is_invariant
    sizes = (order, counts, _MANY if many else _FEW, block_e)
    _product(gate_up.view(count, -1), x, gate_up_weights, *sizes, rows_per_x=top_k)
    elementwise.act_mul(act.view(count, -1), gate_up.view(count, -1), kind)
    _product(grouped.view(count, width), act.view(count, -1), down_weights, *sizes, rows_per_x=0)
    grid = (num_rows, triton.cdiv(width, _COLUMNS))
    _combine_kernel[grid](out, grouped, places, weights, width, K=top_k, BLOCK=_COLUMNS)


def _product(
    out: Tensor, x: Tensor, weights: ExpertsWeight, order: Tensor, counts: Tensor, block_m: int, block_e: int,
    rows_per_x: int,
) -> None:  # fmt: skip
    num_experts, n, k = weights.weight.shape
    most_tiles = min(len(out), triton.cdiv(len(out), block_m) + num_experts)
    _product_kernel[(most_tiles, triton.cdiv(n, _BLOCK_N))](
        out,
        x,
        weights.weight,
        order,
        counts,
        n,
        k,
        rows_per_x,
        E=num_experts,
        BLOCK_E=block_e,
        GATHER=rows_per_x > 0,
        BLOCK_M=block_m,
        BLOCK_N=_BLOCK_N,
        BLOCK_K=_BLOCK_K,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=4,
        num_stages=3,
    )


def variants() -> list[Variant]:
    ids = {"ids": "*i32", "weights": "*fp32"}
    sort = {"counts": "*i32", "ids": "*i32", "count": "i32"}
    found = [
        Variant(
            name="route 8 of 128",
            kernel=_route_kernel,
            signature={**ids, "scores": "*fp32"},
            constexprs={"RENORMALIZE": True, "E": 128, "K": 8, "BLOCK": 128},
            num_warps=1,
            divisible=frozenset({*ids, "scores"}),
        ),
        Variant(
            name="experts: count",
            kernel=_count_kernel,
            signature=sort,
            constexprs={"BLOCK": _ENTRIES},
            divisible=frozenset({"counts", "ids"}),
        ),
        Variant(
            name="experts: places of 128",
            kernel=_place_kernel,
            signature={"places": "*i32", "order": "*i32", **sort},
            constexprs={"E": 128, "BLOCK_E": 128, "BLOCK": _ENTRIES},
            divisible=frozenset({"places", "order", "counts", "ids"}),
        ),
        Variant(
            name="experts: combine 8",
            kernel=_combine_kernel,
            signature={"out": "*bf16", "y": "*bf16", "places": "*i32", "weights": "*fp32", "width": "i32"},
            constexprs={"K": 8, "BLOCK": _COLUMNS},
            divisible=frozenset({"out", "y", "places", "weights", "width"}),
        ),
    ]
    pointers = {"out": "*bf16", "x": "*bf16", "weight": "*bf16", "order": "*i32", "counts": "*i32"}
    for block_m in (_FEW, _MANY):
        for gather in (False, True):
            constexprs: dict[str, Any] = {
                "E": 8, "BLOCK_E": 8, "GATHER": gather, "BLOCK_M": block_m, "BLOCK_N": _BLOCK_N, "BLOCK_K": _BLOCK_K,
                "PRECISION": "tf32",
            }  # fmt: skip
            found.append(
                Variant(
                    name=f"experts: {block_m} rows{', gathered' if gather else ''}",
                    kernel=_product_kernel,
                    signature={**pointers, "N": "i32", "K": "i32", "rows_per_x": "i32"},
                    constexprs=constexprs,
                    num_stages=3,
                    divisible=frozenset({*pointers, "N", "K"}),
                )
            )
    return found
