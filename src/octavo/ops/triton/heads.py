"""What some models do to q, k and v before they are rotated: bounds, and norms with weights of each head's own."""

from __future__ import annotations

from typing import Final

import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

#: Values of one program that bounds, and heads of one that norms.
_BLOCK: Final = 1024
_HEADS: Final = 8


@jit
def _clip_kernel(x, limit, count, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    values = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(x + index, tl.minimum(tl.maximum(values, -limit), limit).to(x.dtype.element_ty), mask=mask)


@jit
def _head_norm_kernel(
    qkv, q_norm, k_norm, eps, row_size,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    IS_LAYER: tl.constexpr,
):  # fmt: skip
    """One token, HEADS heads of q | k. BLOCK: D, rounded up to a power of two."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < D
    mask = (heads < NUM_HEADS + NUM_KV_HEADS) & inside
    place = qkv + token * row_size + heads * D + columns
    x = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if IS_LAYER:
        x = tl.where(inside, x - (tl.sum(x, 1) / D)[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    is_q = heads < NUM_HEADS
    weight = tl.load(q_norm + heads * D + columns, mask=mask & is_q, other=0.0)
    weight += tl.load(k_norm + (heads - NUM_HEADS) * D + columns, mask=mask & (is_q == 0), other=0.0)
    tl.store(place, (x * inverse * weight).to(qkv.dtype.element_ty), mask=mask)


def clip_(x: Tensor, limit: float) -> None:
    """`reference.clip_`."""
    count = x.numel()
    if count:
        _clip_kernel[(triton.cdiv(count, _BLOCK),)](x, limit, count, BLOCK=_BLOCK)


def head_norm_(qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, kind: str, head_dim: int) -> None:
    """`reference.head_norm_`."""
    rows, row_size = qkv.shape
    num_heads, num_kv_heads = q_norm.numel() // head_dim, k_norm.numel() // head_dim
    if rows:
        _head_norm_kernel[(rows, triton.cdiv(num_heads + num_kv_heads, _HEADS))](
            qkv,
            q_norm,
            k_norm,
            eps,
            row_size,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            D=head_dim,
            BLOCK=triton.next_power_of_2(head_dim),
            HEADS=_HEADS,
            IS_LAYER=kind == "layer",
            num_warps=4,
        )


def variants() -> list[Variant]:
    pointers = {"qkv": "*bf16", "q_norm": "*fp32", "k_norm": "*fp32"}
    sizes = {"NUM_HEADS": 96, "NUM_KV_HEADS": 8, "D": 128, "BLOCK": 128, "HEADS": _HEADS, "IS_LAYER": True}
    return [
        Variant(
            name="clip",
            kernel=_clip_kernel,
            signature={"x": "*bf16", "limit": "fp32", "count": "i32"},
            constexprs={"BLOCK": _BLOCK},
            divisible=frozenset({"x", "count"}),
        ),
        Variant(
            name="head_norm 96/8 x 128",
            kernel=_head_norm_kernel,
            signature={**pointers, "eps": "fp32", "row_size": "i32"},
            constexprs=sizes,
            divisible=frozenset({*pointers, "row_size"}),
        ),
    ]
