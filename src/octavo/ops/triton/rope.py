"""Norms of heads, rotation, and the cache's new keys and values, in one pass over a token's projections.

The KV cache of this device: k and v both [num_blocks, Hkv, block_size, D], of the activations' type or a float8 type
that holds values divided by a scale. The keys of one head and block lie side by side: what an attention tile reads is
whole lines of memory.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.variants import TYPE_NAMES, Variant

#: Heads of one program.
_HEADS: Final = 8
FLOAT8_MAX: Final = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}


@jit(chained=True)
def _rope_kernel(
    qkv, positions, cos_sin, q_norm, k_norm, eps, q_scales, k_cache, v_cache, slots, k_factor, v_factor, block_size,
    block_stride,
    NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr, ROTATES: tl.constexpr, LIMIT: tl.constexpr, NORMS_ROTATED: tl.constexpr,
    HAS_SCALES: tl.constexpr, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """One token, HEADS heads of q | k | v. HALF: D / 2, rounded up to a power of two."""
    wait_turn(CHAINED)
    TOTAL: tl.constexpr = NUM_HEADS + 2 * NUM_KV_HEADS
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    half = tl.arange(0, HALF)
    in_half = half < D // 2
    mask = (heads < TOTAL)[:, None] & in_half[None, :]
    is_q = heads < NUM_HEADS
    is_v = heads >= NUM_HEADS + NUM_KV_HEADS
    place = qkv + token * (TOTAL * D) + heads[:, None] * D + half[None, :]
    first = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(place + D // 2, mask=mask, other=0.0).to(tl.float32)
    rotated_first, rotated_second = first, second
    if HAS_NORM and not NORMS_ROTATED:
        rotated_first, rotated_second = _normed(first, second, is_q, q_norm, k_norm, eps, half, in_half, D)
    new_first, new_second = rotated_first, rotated_second
    if ROTATES:
        position = tl.load(positions + token).to(tl.int64)
        cos = tl.load(cos_sin + position * D + half, mask=in_half, other=0.0)[None, :]
        sin = tl.load(cos_sin + position * D + D // 2 + half, mask=in_half, other=0.0)[None, :]
        new_first = rotated_first * cos - rotated_second * sin
        new_second = rotated_second * cos + rotated_first * sin
    if HAS_NORM and NORMS_ROTATED:
        new_first, new_second = _normed(new_first, new_second, is_q, q_norm, k_norm, eps, half, in_half, D)
    if HAS_SCALES:
        q_scale = tl.where(is_q, tl.load(q_scales + tl.load(positions + token)), 1.0)[:, None]
        new_first *= q_scale
        new_second *= q_scale
    rotates = mask & (is_v == 0)[:, None]
    tl.store(place, new_first.to(qkv.dtype.element_ty), mask=rotates)
    tl.store(place + D // 2, new_second.to(qkv.dtype.element_ty), mask=rotates)

    slot = tl.load(slots + token)
    if slot >= 0:
        at = (slot // block_size) * block_stride + (slot % block_size) * D
        k_heads = heads - NUM_HEADS
        is_k = mask & ((is_q == 0) & (is_v == 0))[:, None]
        target = k_cache + at + k_heads[:, None] * block_size * D + half[None, :]
        store_limited(target, new_first * k_factor, is_k, LIMIT)
        store_limited(target + D // 2, new_second * k_factor, is_k, LIMIT)
        target = v_cache + at + (k_heads - NUM_KV_HEADS)[:, None] * block_size * D + half[None, :]
        store_limited(target, first * v_factor, mask & is_v[:, None], LIMIT)
        store_limited(target + D // 2, second * v_factor, mask & is_v[:, None], LIMIT)


@triton.jit
def _normed(first, second, is_q, q_norm, k_norm, eps, half, in_half, D: tl.constexpr):
    """The RMS norm of each head, in halves."""
    mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D
    inverse = tl.rsqrt(mean + eps)[:, None]
    q_first = tl.load(q_norm + half, mask=in_half, other=0.0)[None, :]
    q_second = tl.load(q_norm + D // 2 + half, mask=in_half, other=0.0)[None, :]
    k_first = tl.load(k_norm + half, mask=in_half, other=0.0)[None, :]
    k_second = tl.load(k_norm + D // 2 + half, mask=in_half, other=0.0)[None, :]
    first = first * inverse * tl.where(is_q[:, None], q_first, k_first)
    return first, second * inverse * tl.where(is_q[:, None], q_second, k_second)


@triton.jit
def store_limited(target, values, mask, LIMIT: tl.constexpr):
    """Cached values; float8 has no room beyond its limit, and one value must not become infinity."""
    if LIMIT > 0:
        values = tl.clamp(values, -LIMIT, LIMIT)
    tl.store(target, values.to(target.dtype.element_ty), mask=mask)


def kv_cache_shapes(
    num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype = torch.float32
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of k_cache and v_cache, the same for each type that there is."""
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    return shape, shape


def rope_kv_write(
    qkv: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    norms_rotated: bool = False,
    q_scales: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """`reference_attention.rope_kv_write`. A slot below 0 takes nothing. The cache holds keys / k_scale and
    values / v_scale."""
    num_tokens = len(qkv)
    if num_tokens == 0:
        return
    assert (q_norm is None) == (k_norm is None), "q and k are normed both, or neither"
    grid = (num_tokens, triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS))
    _rope_kernel[grid](
        qkv,
        positions,
        cos_sin,
        q_norm,
        k_norm,
        eps,
        q_scales,
        k_cache,
        v_cache,
        slot_mapping,
        1.0 / k_scale,
        1.0 / v_scale,
        k_cache.shape[2],
        k_cache.stride(0),
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        D=head_dim,
        HALF=triton.next_power_of_2(head_dim // 2),
        HEADS=_HEADS,
        HAS_NORM=q_norm is not None,
        ROTATES=cos_sin is not None,
        LIMIT=FLOAT8_MAX.get(k_cache.dtype, 0.0),
        NORMS_ROTATED=norms_rotated,
        HAS_SCALES=q_scales is not None,
        num_warps=4,
    )


def variants() -> list[Variant]:
    found = []
    for heads, kv_heads, head_dim, has_norm, cache, is_rotated_first in (
        (16, 8, 128, True, torch.bfloat16, False),
        (32, 8, 128, False, torch.bfloat16, False),
        (32, 8, 128, False, torch.float8_e4m3fn, False),
        (4, 1, 256, True, torch.bfloat16, False),
        (32, 8, 128, True, torch.bfloat16, True),
    ):
        pointers = {"qkv": "*bf16", "positions": "*i32", "cos_sin": "*fp32", "slots": "*i64"}
        pointers |= dict.fromkeys(("k_cache", "v_cache"), f"*{TYPE_NAMES[cache]}")
        constexprs: dict[str, Any] = {
            "NUM_HEADS": heads, "NUM_KV_HEADS": kv_heads, "D": head_dim, "HALF": head_dim // 2, "HEADS": _HEADS,
            "HAS_NORM": has_norm, "ROTATES": True, "LIMIT": FLOAT8_MAX.get(cache, 0.0),
            "NORMS_ROTATED": is_rotated_first, "HAS_SCALES": is_rotated_first,
        }  # fmt: skip
        if has_norm:
            pointers |= dict.fromkeys(("q_norm", "k_norm"), "*fp32")
        else:
            constexprs |= {"q_norm": None, "k_norm": None}
        if is_rotated_first:
            pointers |= {"q_scales": "*fp32"}
        else:
            constexprs |= {"q_scales": None}
        numbers = {"eps": "fp32", "k_factor": "fp32", "v_factor": "fp32", "block_size": "i32", "block_stride": "i32"}
        what = " rotated, normed, scaled" if is_rotated_first else " norm" if has_norm else ""
        found.append(
            Variant(
                name=f"rope {heads}/{kv_heads} x {head_dim}{what} to {TYPE_NAMES[cache]}",
                kernel=_rope_kernel,
                signature=pointers | numbers,
                constexprs=constexprs,
                divisible=frozenset({*pointers, "block_size", "block_stride"}),
                min_capability=89 if cache == torch.float8_e4m3fn else 80,
            )
        )
    return found
