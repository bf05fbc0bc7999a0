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
from octavo.ops.lora import ExpertDeltas
from octavo.ops.routing import Routing
from octavo.ops.triton import elementwise, lora
from octavo.ops.triton.experts_int import IntExperts, common_form, int_product, joined, rows_of_tile
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.linear_dense import HALF_TYPES
from octavo.ops.triton.linear_int import IntLinear, pack_int
from octavo.ops.triton.variants import Variant
from octavo.quant.packed import QuantizedWeight, as_floats

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
    """Matrices [E, N, K] of the activations' type, and biases float32 [E, N] or none. `is_invariant`: tiles must not
    depend on the number of rows."""

    weight: Tensor
    bias: Tensor | None
    is_invariant: bool

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __len__(self) -> int:
        return len(self.weight)

    def __iter__(self) -> Any:
        return iter(self.weight)


def pack_experts(
    experts: Iterable[tuple[Sequence[Tensor | QuantizedWeight], Sequence[Tensor | None]]],
    dtype: torch.dtype,
    to_device: Callable[[Tensor], Tensor],
    is_invariant: bool,
) -> ExpertsWeight | IntExperts:
    """For each expert its matrices, [N_i, K] one below the other, and their biases; either all experts have them or
    none. Quantized matrices stay small if all have one form that the kernels take."""
    packed: list[Tensor | IntLinear] = []
    biases = []
    for parts, of_parts in experts:
        form = common_form(parts) if dtype in HALF_TYPES else None
        if form is None:
            packed.append(torch.cat([to_device(as_floats(part)).to(dtype) for part in parts]))
        else:
            quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
            packed.append(pack_int(quantized, form, None, dtype, to_device, is_invariant))
        given = [to_device(bias).to(torch.float32) for bias in of_parts if bias is not None]
        biases += [torch.cat(given)] if given else []
    bias = torch.stack(biases) if biases else None
    small = [each for each in packed if isinstance(each, IntLinear)]
    if len(small) == len(packed) and len({each.form for each in small}) == 1:
        return IntExperts(joined(small), bias, len(small), is_invariant)
    return ExpertsWeight(torch.stack([_as_floats(each, dtype) for each in packed]), bias, is_invariant)


def pack_floats(
    experts: Iterable[tuple[Sequence[Tensor | QuantizedWeight], Sequence[Tensor | None]]],
    dtype: torch.dtype,
    to_device: Callable[[Tensor], Tensor],
    is_invariant: bool,
) -> ExpertsWeight:
    """The same, always as floats, and without biases."""
    packed = [torch.cat([to_device(as_floats(part)).to(dtype) for part in parts]) for parts, _ in experts]
    return ExpertsWeight(torch.stack(packed), None, is_invariant)


def _as_floats(matrix: Tensor | IntLinear, dtype: torch.dtype) -> Tensor:
    if isinstance(matrix, Tensor):
        return matrix
    out = torch.empty(matrix.N, matrix.K, dtype=dtype, device=matrix.packed.device)
    matrix.write_rows(out, None)
    return out


@triton.jit
def _first_best(values, experts, is_open, BLOCK: tl.constexpr):
    """The first of the best among those that are open. Not an expert where one's value is not a number."""
    best = tl.max(tl.where(is_open, values, float("-inf")), 0)
    return tl.min(tl.where((values == best) & is_open, experts, BLOCK), 0)


@triton.jit
def _in_best_groups(
    values, experts, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr, GROUP_BEST: tl.constexpr, E: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The values, -inf in all groups but the best."""
    group = experts // (E // GROUPS)
    worths = tl.full([BLOCK], float("-inf"), tl.float32)  # of each expert's group
    for g in tl.static_range(GROUPS):
        is_left = (group == g) & (experts < E)
        worth = 0.0
        for _ in tl.static_range(GROUP_BEST):
            best = _first_best(values, experts, is_left, BLOCK)
            worth += tl.max(tl.where(experts == best, values, float("-inf")), 0)
            is_left = is_left & (experts != best)
        worths = tl.where(group == g, worth, worths)
    is_open = experts < 0
    for _ in tl.static_range(TOP_GROUPS):
        best = _first_best(worths, experts, (experts < E) & (is_open == 0), BLOCK)
        is_open = is_open | (group == best // (E // GROUPS))
    return tl.where(is_open, values, float("-inf"))


@jit(chained=True)
def _route_kernel(
    ids, weights, scores, bias, scales, factor, jitter,
    KIND: tl.constexpr, RENORMALIZE: tl.constexpr, GROUPS: tl.constexpr, TOP_GROUPS: tl.constexpr,
    GROUP_BEST: tl.constexpr, E: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """One row, as `Routing` says."""
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    given = tl.load(scores + row * E + experts, mask=experts < E, other=float("-inf")).to(tl.float32)
    high = tl.max(given, 0)
    total = tl.sum(tl.exp(given - high), 0)
    values = given
    if (bias is not None) or GROUPS > 1:
        values = 1.0 / (1.0 + tl.exp(-given)) if KIND == "sigmoid" else tl.exp(given - high) / total
        if bias is not None:
            values += tl.load(bias + experts, mask=experts < E, other=0.0)
    if GROUPS > 1:
        values = _in_best_groups(values, experts, GROUPS, TOP_GROUPS, GROUP_BEST, E, BLOCK)
    taken = experts >= E
    chosen = 0.0
    for j in tl.static_range(K):
        expert = tl.minimum(_first_best(values, experts, taken == 0, BLOCK), E - 1)
        best = tl.max(tl.where(experts == expert, given, float("-inf")), 0)
        if KIND == "sigmoid":
            weight = 1.0 / (1.0 + tl.exp(-best))
        elif KIND == "sparsemixer":
            is_far = (best - given) / tl.maximum(tl.abs(given), best) > 2.0 * jitter
            weight = 1.0 / tl.sum(tl.where(taken | is_far, 0.0, tl.exp(given - best)), 0)
        else:
            weight = tl.exp(best - high)
        chosen += weight
        tl.store(ids + row * K + j, expert)
        tl.store(weights + row * K + j, weight / total if KIND == "softmax" else weight)
        taken = taken | (experts == expert)
    for j in tl.static_range(K):
        weight = tl.load(weights + row * K + j)
        if RENORMALIZE and KIND == "softmax":
            weight = weight * (total / chosen)
        if RENORMALIZE and KIND == "sigmoid":
            weight = weight / (chosen + 1e-20)
        weight *= factor
        if scales is not None:
            weight *= tl.load(scales + tl.load(ids + row * K + j))
        tl.store(weights + row * K + j, weight)


@jit(do_not_specialize=["count"], chained=True)
def _count_kernel(counts, ids, count, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False):
    """How many of the entries name an expert."""
    wait_turn(CHAINED)
    expert = tl.program_id(0)
    total = 0
    for at in range(0, count, BLOCK):
        entries = at + tl.arange(0, BLOCK)
        total += tl.sum((tl.load(ids + entries, mask=entries < count, other=-1) == expert).to(tl.int32), 0)
    tl.store(counts + expert, total)


@jit(do_not_specialize=["count"], chained=True)
def _place_kernel(
    places,
    order,
    counts,
    ids,
    count,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK: tl.constexpr,
    CHAINED: tl.constexpr = False,
):
    """The entries of an expert go to consecutive places, in their order; order[place] is the entry."""
    wait_turn(CHAINED)
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


@jit(chained=True)
def _product_kernel(
    out, x, weight, bias, scales, order, counts, N, K, rows_per_x,
    E: tl.constexpr, BLOCK_E: tl.constexpr, GATHER: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """A tile of the rows of one expert. GATHER: x has a row for each `rows_per_x` entries, not one for each place.
    scales, by entry, or none: what x is multiplied by."""
    wait_turn(CHAINED)
    expert, rows, exists, sources = rows_of_tile(order, counts, rows_per_x, E, BLOCK_E, GATHER, BLOCK_M)
    if expert < E:
        columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
        matrix = weight + expert.to(tl.int64) * N * K
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, K, BLOCK_K):
            ks = k + tl.arange(0, BLOCK_K)
            a = tl.load(x + sources[:, None] * K + ks[None, :], mask=exists[:, None] & (ks < K)[None, :], other=0.0)
            b_mask = (columns < N)[:, None] & (ks < K)[None, :]
            b = tl.load(matrix + columns[:, None].to(tl.int64) * K + ks[None, :], mask=b_mask, other=0.0)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        if scales is not None:
            entries = tl.load(order + rows, mask=exists, other=0)
            acc = acc * tl.load(scales + entries, mask=exists, other=0.0)[:, None]
        if bias is not None:
            added = tl.load(bias + expert.to(tl.int64) * N + columns, mask=columns < N, other=0.0)
            acc = acc + added[None, :]
        target = out + rows[:, None].to(tl.int64) * N + columns[None, :]
        tl.store(target, acc.to(out.dtype.element_ty), mask=exists[:, None] & (columns < N)[None, :])


@jit(chained=True)
def _combine_kernel(
    out, y, places, weights, width, K: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False
):
    """The sum over a row's experts, in their order. weights: none if the experts' inputs were multiplied."""
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    acc = tl.zeros([BLOCK], tl.float32)
    for j in tl.static_range(K):
        place = tl.load(places + row * K + j).to(tl.int64)
        value = tl.load(y + place * width + columns, mask=mask, other=0.0).to(tl.float32)
        acc += value if weights is None else value * tl.load(weights + row * K + j)
    tl.store(out + row * width + columns, acc.to(out.dtype.element_ty), mask=mask)


def route(
    ids: Tensor,
    weights: Tensor,
    scores: Tensor,
    routing: Routing,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """`reference.route`."""
    rows, num_experts = scores.shape
    if rows:
        block = triton.next_power_of_2(num_experts)
        _route_kernel[(rows,)](
            ids,
            weights,
            scores,
            bias,
            scales,
            routing.factor,
            routing.jitter,
            **_routing_constants(routing),
            E=num_experts,
            K=ids.shape[1],
            BLOCK=block,
            num_warps=1,
        )


def _routing_constants(routing: Routing) -> dict[str, Any]:
    return {
        "KIND": routing.kind, "RENORMALIZE": routing.renormalize, "GROUPS": routing.num_groups,
        "TOP_GROUPS": routing.top_groups, "GROUP_BEST": routing.group_best,
    }  # fmt: skip


def experts(
    out: Tensor,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up_weights: ExpertsWeight | IntExperts,
    down_weights: ExpertsWeight | IntExperts,
    kind: str,
    *,
    places: Tensor,
    grouped: Tensor,
    gate_up: Tensor,
    act: Tensor,
    gated: bool = True,
    scales_input: bool = False,
    deltas: ExpertDeltas | None = None,
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
    scales = weights if scales_input else None
    _product(gate_up.view(count, -1), x, gate_up_weights, *sizes, rows_per_x=top_k, scales=scales)
    if deltas is not None:
        entries = order.long()
        inputs = x[entries // top_k]
        if scales_input:
            inputs = (inputs * weights.flatten()[entries].unsqueeze(1)).to(x.dtype)
        slots, chosen = deltas.slots[entries // top_k], ids.flatten()[entries]
        lora.lora_delta(
            gate_up.view(count, -1), inputs, deltas.gate_up.slots_of(slots, chosen), deltas.gate_up.bank
        )  # fmt: skip
    activate = elementwise.act_mul if gated else elementwise.act
    activate(act.view(count, -1), gate_up.view(count, -1), kind)
    _product(grouped.view(count, width), act.view(count, -1), down_weights, *sizes, rows_per_x=0)
    if deltas is not None:
        lora.lora_delta(
            grouped.view(count, width), act.view(count, -1), deltas.down.slots_of(slots, chosen), deltas.down.bank
        )
    grid = (num_rows, triton.cdiv(width, _COLUMNS))
    _combine_kernel[grid](out, grouped, places, None if scales_input else weights, width, K=top_k, BLOCK=_COLUMNS)


def _product(
    out: Tensor, x: Tensor, weights: ExpertsWeight | IntExperts, order: Tensor, counts: Tensor, block_m: int,
    block_e: int, rows_per_x: int, scales: Tensor | None = None,
) -> None:  # fmt: skip
    if isinstance(weights, IntExperts):
        int_product(out, x, weights, order, counts, block_m > _FEW, block_e, rows_per_x, scales)
        return
    num_experts, n, k = weights.weight.shape
    most_tiles = min(len(out), triton.cdiv(len(out), block_m) + num_experts)
    _product_kernel[(most_tiles, triton.cdiv(n, _BLOCK_N))](
        out,
        x,
        weights.weight,
        weights.bias,
        scales,
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


_GROUPED: Final = Routing(kind="sigmoid", num_groups=8, top_groups=4, group_best=2, factor=2.5)
_SPARSEMIXER: Final = Routing(kind="sparsemixer", jitter=0.01)


def _route_variant(
    name: str, routing: Routing, *, has_bias: bool, num_experts: int, top_k: int = 8, has_scales: bool = False
) -> Variant:
    given = {"bias": has_bias, "scales": has_scales}
    pointers = {"ids": "*i32", "weights": "*fp32", "scores": "*fp32"}
    pointers |= {key: "*fp32" for key, is_given in given.items() if is_given}
    constexprs: dict[str, Any] = {"E": num_experts, "K": top_k, "BLOCK": triton.next_power_of_2(num_experts)}
    return Variant(
        name=f"route {name}",
        kernel=_route_kernel,
        signature={**pointers, "factor": "fp32", "jitter": "fp32"},
        constexprs=constexprs
        | _routing_constants(routing)
        | {key: None for key, is_given in given.items() if not is_given},
        num_warps=1,
        divisible=frozenset(pointers),
    )


def variants() -> list[Variant]:
    sort = {"counts": "*i32", "ids": "*i32", "count": "i32"}
    found = [
        _route_variant("8 of 128", Routing(), has_bias=False, num_experts=128),
        _route_variant("8 of 128, scales", Routing(), has_bias=False, num_experts=128, has_scales=True),
        _route_variant("8 of 256, groups", _GROUPED, has_bias=True, num_experts=256),
        _route_variant("2 of 16, sparsemixer", _SPARSEMIXER, has_bias=False, num_experts=16, top_k=2),
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
    for block_m, has_bias in ((_FEW, False), (_MANY, False), (_FEW, True)):
        for gather in (False, True):
            constexprs: dict[str, Any] = {
                "E": 8, "BLOCK_E": 8, "GATHER": gather, "BLOCK_M": block_m, "BLOCK_N": _BLOCK_N, "BLOCK_K": _BLOCK_K,
                "PRECISION": "tf32", "scales": None,
            }  # fmt: skip
            own = {"bias": "*fp32"} if has_bias else {}
            if not has_bias:
                constexprs["bias"] = None
            found.append(
                Variant(
                    name=f"experts: {block_m} rows{', gathered' if gather else ''}{', biases' if has_bias else ''}",
                    kernel=_product_kernel,
                    signature={**pointers, **own, "N": "i32", "K": "i32", "rows_per_x": "i32"},
                    constexprs=constexprs,
                    num_stages=3,
                    divisible=frozenset({*pointers, *own, "N", "K"}),
                )
            )
    return found
