"""Mamba's scan: a program takes some channels of one sequence, and its rows one after the other."""

from __future__ import annotations

from typing import Final

import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

_CHANNELS: Final = 64


@jit
def _kernel(
    out, x, dt, gate, b, c, a_log, d, state, slots, positions, query_start_loc, width,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, GROUPS: tl.constexpr,
    SIZE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """SIZE: numbers of a channel's state; BLOCK_N: as many, rounded up to a power of two. HEADS: that share steps and
    rates, and a program has a part of one; 0: channels have their own."""
    seq = tl.program_id(0)
    numbers = tl.arange(0, BLOCK_N)
    if HEADS:
        per_head: tl.constexpr = (HEAD_DIM + BLOCK_W - 1) // BLOCK_W
        head = tl.program_id(1) // per_head
        within = tl.program_id(1) % per_head * BLOCK_W + tl.arange(0, BLOCK_W)
        channels, in_width = head * HEAD_DIM + within, within < HEAD_DIM
        numbers_at = head // (HEADS // GROUPS) * SIZE + numbers
    else:
        head = 0
        channels = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
        in_width, numbers_at = channels < width, numbers
    in_size = numbers < SIZE
    mask = in_size[:, None] & in_width
    first = tl.load(query_start_loc + seq).to(tl.int64)
    end = tl.load(query_start_loc + seq + 1).to(tl.int64)
    if first < end:
        at = numbers[:, None] * width + channels
        if HEADS:
            rates = tl.zeros((BLOCK_N, BLOCK_W), tl.float32) - tl.exp(tl.load(a_log + head))
            skip = tl.zeros((BLOCK_W,), tl.float32) + tl.load(d + head)
        else:
            rates = -tl.exp(tl.load(a_log + at, mask=mask, other=0.0))
            skip = tl.load(d + channels, mask=in_width, other=0.0)
        kept = state + tl.load(slots + seq).to(tl.int64) * (SIZE * width) + at
        goes_on = tl.load(positions + first) > 0
        h = tl.load(kept, mask=mask & goes_on, other=0.0)
        for row in range(first, end):
            value = tl.load(x + row * width + channels, mask=in_width, other=0.0).to(tl.float32)
            if HEADS:
                step = tl.zeros((BLOCK_W,), tl.float32) + tl.load(dt + row * HEADS + head).to(tl.float32)
            else:
                step = tl.load(dt + row * width + channels, mask=in_width, other=0.0).to(tl.float32)
            opened = tl.load(gate + row * width + channels, mask=in_width, other=0.0).to(tl.float32)
            step = tl.where(step > 20.0, step, tl.log(1.0 + tl.exp(tl.minimum(step, 20.0))))
            write = tl.load(b + row * (GROUPS * SIZE) + numbers_at, mask=in_size, other=0.0).to(tl.float32)
            read = tl.load(c + row * (GROUPS * SIZE) + numbers_at, mask=in_size, other=0.0).to(tl.float32)
            h = tl.exp(step[None, :] * rates) * h + (step * value)[None, :] * write[:, None]
            total = tl.sum(h * read[:, None], 0) + skip * value
            total = total * (opened / (1.0 + tl.exp(-opened)))
            tl.store(out + row * width + channels, total.to(out.dtype.element_ty), mask=in_width)
        tl.store(kept, h, mask=mask)


def selective_scan(
    out: Tensor,
    x: Tensor,
    dt: Tensor,
    gate: Tensor,
    b: Tensor,
    c: Tensor,
    a_log: Tensor,
    d: Tensor,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
) -> None:
    """`reference_states.selective_scan`."""
    _, size, width = state.shape
    heads = 0 if a_log.dim() == 2 else len(a_log)
    head_dim = width // heads if heads else width
    if len(slots) == 0:
        return
    _kernel[(len(slots), max(heads, 1) * triton.cdiv(head_dim, _CHANNELS))](
        out, x, dt, gate, b, c, a_log, d, state, slots, positions, query_start_loc, width,
        HEADS=heads, HEAD_DIM=head_dim, GROUPS=b.shape[1] // size,
        SIZE=size, BLOCK_N=triton.next_power_of_2(size), BLOCK_W=_CHANNELS, num_warps=4,
    )  # fmt: skip


def variants() -> list[Variant]:
    pointers = dict.fromkeys(("out", "x", "dt", "gate", "b", "c"), "*bf16")
    pointers |= dict.fromkeys(("a_log", "d", "state"), "*fp32")
    pointers |= dict.fromkeys(("slots", "positions", "query_start_loc"), "*i32")
    return [
        Variant(
            name=f"{size} numbers{f', {heads} heads' if heads else ''}",
            kernel=_kernel,
            signature=pointers | {"width": "i32"},
            constexprs={
                "HEADS": heads, "HEAD_DIM": head_dim, "GROUPS": 1, "SIZE": size, "BLOCK_N": size, "BLOCK_W": _CHANNELS,
            },
            divisible=frozenset({*pointers, "width"}),
        )
        for size, heads, head_dim in ((16, 0, 8192), (128, 48, 64))
    ]  # fmt: skip
