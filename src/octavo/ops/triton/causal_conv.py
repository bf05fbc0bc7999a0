"""Convolutions along sequences: a program takes some channels of one sequence, and its rows one after the other."""

from __future__ import annotations

from typing import Final

import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

_CHANNELS: Final = 128


@jit
def _kernel(
    out, x, weight, bias, state, slots, positions, query_start_loc, width,
    BEFORE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_W: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """BEFORE: taps but the last; BLOCK_T: as many and one, rounded up to a power of two."""
    seq = tl.program_id(0)
    channels, taps = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W), tl.arange(0, BLOCK_T)
    in_width = channels < width
    first = tl.load(query_start_loc + seq).to(tl.int64)
    end = tl.load(query_start_loc + seq + 1).to(tl.int64)
    if first < end:
        filters = tl.load(
            weight + taps[:, None] * width + channels, mask=(taps <= BEFORE)[:, None] & in_width, other=0.0
        )
        added = tl.zeros([BLOCK_W], tl.float32)
        if bias is not None:
            added = tl.load(bias + channels, mask=in_width, other=0.0)
        kept = state + tl.load(slots + seq).to(tl.int64) * (BEFORE * width)
        starts_at = tl.load(positions + first)
        stride = width
        if GATED:
            stride = 3 * width
        for row in range(first, end):
            # The inputs of this row and of those before it: of the step's, or of what the slot keeps.
            at = row - BEFORE + taps
            ours = (at >= first) & (at <= row)
            source = x + at[:, None] * stride + channels
            mask = ours[:, None] & in_width
            inputs = tl.load(source, mask=mask, other=0.0).to(tl.float32)
            if GATED:
                inputs = inputs * tl.load(source + 2 * width, mask=mask, other=0.0).to(tl.float32)
            earlier = (at < first) & (starts_at > 0) & (taps < BEFORE)
            place = kept + (row - first + taps)[:, None] * width + channels
            inputs += tl.load(place, mask=earlier[:, None] & in_width, other=0.0)
            sums = added + tl.sum(inputs * filters, 0)
            if GATED:
                sums *= tl.load(x + row * stride + width + channels, mask=in_width, other=0.0).to(tl.float32)
            else:
                sums = sums / (1.0 + tl.exp(-sums))
            tl.store(out + row * width + channels, sums.to(out.dtype.element_ty), mask=in_width)
        # What the next token will need: the last BEFORE of what the slot kept and of the step's inputs.
        at = end - BEFORE + taps
        is_kept = taps < BEFORE
        ours = (at >= first) & is_kept
        source = x + at[:, None] * stride + channels
        inputs = tl.load(source, mask=ours[:, None] & in_width, other=0.0).to(tl.float32)
        if GATED:
            inputs = inputs * tl.load(source + 2 * width, mask=ours[:, None] & in_width, other=0.0).to(tl.float32)
        earlier = (at < first) & (starts_at > 0) & is_kept
        place = kept + (end - first + taps)[:, None] * width + channels
        inputs += tl.load(place, mask=earlier[:, None] & in_width, other=0.0)
        tl.debug_barrier()  # all is read before it is overwritten
        tl.store(kept + taps[:, None] * width + channels, inputs, mask=is_kept[:, None] & in_width)


def causal_conv(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    gated: bool,
) -> None:
    """`reference_states.causal_conv`."""
    taps, width = weight.shape
    if len(slots) == 0:
        return
    _kernel[(len(slots), triton.cdiv(width, _CHANNELS))](
        out, x, weight, bias, state, slots, positions, query_start_loc, width,
        BEFORE=taps - 1, BLOCK_T=triton.next_power_of_2(taps), BLOCK_W=_CHANNELS, GATED=gated, num_warps=4,
    )  # fmt: skip


def variants() -> list[Variant]:
    found = []
    for taps, gated, has_bias in ((3, True, False), (4, False, True)):
        pointers = {"out": "*bf16", "x": "*bf16", "weight": "*fp32", "state": "*fp32"}
        pointers |= dict.fromkeys(("slots", "positions", "query_start_loc"), "*i32")
        constexprs = {"BEFORE": taps - 1, "BLOCK_T": 4, "BLOCK_W": _CHANNELS, "GATED": gated}
        if has_bias:
            pointers["bias"] = "*fp32"
        found.append(
            Variant(
                name=f"{taps} taps{', gated' if gated else ''}{', bias' if has_bias else ''}",
                kernel=_kernel,
                signature=pointers | {"width": "i32"},
                constexprs=constexprs if has_bias else constexprs | {"bias": None},
                divisible=frozenset({*pointers, "width"}),
            )
        )
    return found
