"""The gated delta rule: a program takes some columns of a head's state of one sequence, and its rows one after the
other. And gates."""

from __future__ import annotations

from typing import Final

import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.operations import GateKind
from octavo.ops.reference_states import DELTA_EPS
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

#: Columns of one program.
_COLUMNS: Final = 32
#: Values of one program that gates.
_BLOCK: Final = 1024


@jit
def _kernel(
    out, qkv, gates, a_log, state, slots, positions, query_start_loc, beta_scale, eps,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, TILED: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """BLOCK_K: KEY_DIM, rounded up to a power of two."""
    parts: tl.constexpr = (VALUE_DIM + BLOCK_V - 1) // BLOCK_V
    keys: tl.constexpr = KEY_HEADS * KEY_DIM
    width: tl.constexpr = 2 * keys + HEADS * VALUE_DIM
    seq, head = tl.program_id(0), tl.program_id(1) // parts
    if TILED:
        key_head = head % KEY_HEADS
    else:
        key_head = head // (HEADS // KEY_HEADS)
    numbers, columns = tl.arange(0, BLOCK_K), tl.program_id(1) % parts * BLOCK_V + tl.arange(0, BLOCK_V)
    in_keys, in_values = numbers < KEY_DIM, columns < VALUE_DIM
    mask = in_keys[:, None] & in_values
    first = tl.load(query_start_loc + seq).to(tl.int64)
    end = tl.load(query_start_loc + seq + 1).to(tl.int64)
    if first < end:
        kept = state + (tl.load(slots + seq).to(tl.int64) * HEADS + head) * (KEY_DIM * VALUE_DIM)
        kept += numbers[:, None] * VALUE_DIM + columns
        rate = tl.exp(tl.load(a_log + head))
        goes_on = tl.load(positions + first) > 0
        h = tl.load(kept, mask=mask & goes_on, other=0.0)
        for row in range(first, end):
            place = qkv + row * width + key_head * KEY_DIM + numbers
            q = tl.load(place, mask=in_keys, other=0.0).to(tl.float32)
            k = tl.load(place + keys, mask=in_keys, other=0.0).to(tl.float32)
            v = tl.load(qkv + row * width + 2 * keys + head * VALUE_DIM + columns, mask=in_values, other=0.0).to(
                tl.float32
            )
            b = tl.load(gates + row * (2 * HEADS) + head).to(tl.float32)
            a = tl.load(gates + row * (2 * HEADS) + HEADS + head).to(tl.float32)
            q = q * (tl.rsqrt(tl.sum(q * q, 0) + eps) * KEY_DIM**-0.5)
            k = k * tl.rsqrt(tl.sum(k * k, 0) + eps)
            step = tl.where(a > 20.0, a, tl.log(1.0 + tl.exp(tl.minimum(a, 20.0))))
            h = h * tl.exp(-rate * step)
            delta = (v - tl.sum(h * k[:, None], 0)) * (beta_scale / (1.0 + tl.exp(-b)))
            h += k[:, None] * delta[None, :]
            total = tl.sum(h * q[:, None], 0)
            tl.store(
                out + row * (HEADS * VALUE_DIM) + head * VALUE_DIM + columns,
                total.to(out.dtype.element_ty),
                mask=in_values,
            )
        tl.store(kept, h, mask=mask)


@jit
def _gate_kernel(x, gates, count, BLOCK: tl.constexpr, SILU: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    opened = tl.load(gates + index, mask=mask, other=0.0).to(tl.float32)
    values = tl.load(x + index, mask=mask, other=0.0).to(tl.float32) / (1.0 + tl.exp(-opened))
    if SILU:
        values *= opened
    tl.store(x + index, values.to(x.dtype.element_ty), mask=mask)


def gated_delta(
    out: Tensor,
    qkv: Tensor,
    gates: Tensor,
    a_log: Tensor,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    query_start_loc: Tensor,
    num_key_heads: int,
    tiled: bool = False,
    beta_scale: float = 1.0,
) -> None:
    """`reference_states.gated_delta`."""
    _, num_heads, key_dim, value_dim = state.shape
    if len(slots) == 0:
        return
    _kernel[(len(slots), num_heads * triton.cdiv(value_dim, _COLUMNS))](
        out, qkv, gates, a_log, state, slots, positions, query_start_loc, beta_scale, DELTA_EPS,
        HEADS=num_heads, KEY_HEADS=num_key_heads, KEY_DIM=key_dim, VALUE_DIM=value_dim, TILED=tiled,
        BLOCK_K=triton.next_power_of_2(key_dim), BLOCK_V=_COLUMNS, num_warps=4,
    )  # fmt: skip


def gate_(x: Tensor, gates: Tensor, kind: GateKind) -> None:
    """`reference.gate_`."""
    count = x.numel()
    if count:
        _gate_kernel[(triton.cdiv(count, _BLOCK),)](x, gates, count, BLOCK=_BLOCK, SILU=kind == "silu")


def variants() -> list[Variant]:
    pointers = dict.fromkeys(("out", "qkv", "gates"), "*bf16")
    pointers |= dict.fromkeys(("a_log", "state"), "*fp32")
    pointers |= dict.fromkeys(("slots", "positions", "query_start_loc"), "*i32")
    return [
        *(
            Variant(
                name=f"{heads} heads of {key_dim} and {value_dim}",
                kernel=_kernel,
                signature=pointers | {"beta_scale": "fp32", "eps": "fp32"},
                constexprs={
                    "HEADS": heads, "KEY_HEADS": key_heads, "KEY_DIM": key_dim, "VALUE_DIM": value_dim, "TILED": False,
                    "BLOCK_K": 128, "BLOCK_V": _COLUMNS,
                },
                divisible=frozenset(pointers),
            )
            for heads, key_heads, key_dim, value_dim in ((32, 16, 128, 128), (30, 30, 96, 192))
        ),
        Variant(
            name="gate",
            kernel=_gate_kernel,
            signature={"x": "*bf16", "gates": "*bf16", "count": "i32"},
            constexprs={"BLOCK": _BLOCK, "SILU": False},
            divisible=frozenset({"x", "gates", "count"}),
        ),
    ]  # fmt: skip
