"""Rotation, norms of heads and cache writes in Triton's interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.ops import reference_attention
from octavo.ops.triton import rope
from support.paged_caches import from_reference
from support.tensors import randn

HEADS = ((9, 3, 64), (4, 4, 80), (2, 1, 256), (3, 3, 20))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("has_norm", ["before", "behind", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS)
def test_rotates_norms_and_writes(
    heads: tuple[int, int, int], dtype: torch.dtype, has_norm: str | None, rotates: bool
) -> None:
    hq, hkv, d = heads
    rows, block_size = 7, 16
    k_shape, v_shape = reference_attention.kv_cache_shapes(4, block_size, hkv, d)
    ref_k, ref_v = torch.zeros(k_shape), torch.zeros(v_shape)
    slots = torch.randperm(4 * block_size, generator=torch.Generator().manual_seed(d))[:rows]
    angles = torch.arange(32.0)[:, None] * torch.logspace(0, -3, d // 2)[None, :]
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1) if rotates else None
    qkv = randn(rows, (hq + 2 * hkv) * d).to(dtype)
    positions = torch.arange(rows, dtype=torch.int32) + 5
    q_norm, k_norm = (randn(d), randn(d, seed=2)) if has_norm else (None, None)
    expected = qkv.float().clone()
    scales = torch.linspace(1, 2, 32)[:, None] if has_norm == "behind" else None
    late: dict[str, Any] = {"norms_rotated": has_norm == "behind", "q_scales": scales}
    reference_attention.rope_kv_write(
        expected, positions, cos_sin, q_norm, k_norm, 1e-6, ref_k, ref_v, slots, hq, hkv, d, **late
    )
    shape, _ = rope.kv_cache_shapes(4, block_size, hkv, d)
    k_cache, v_cache = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    rope.rope_kv_write(qkv, positions, cos_sin, q_norm, k_norm, 1e-6, k_cache, v_cache, slots, hq, hkv, d, **late)
    wanted_k, wanted_v = from_reference(ref_k, ref_v, d)
    for found, wanted in ((qkv, expected), (k_cache, wanted_k), (v_cache, wanted_v)):
        torch.testing.assert_close(found.float(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_row_without_a_slot_writes_nothing_and_is_rotated_all_the_same() -> None:
    hq, hkv, d = 2, 1, 16
    qkv, cos_sin = randn(2, 4 * d), torch.cat((randn(4, d // 2), randn(4, d // 2, seed=1)), dim=1)
    both, positions = qkv.clone(), torch.tensor([1, 2], dtype=torch.int32)
    cache = torch.zeros(2, 1, 16, d), torch.zeros(2, 1, 16, d)
    rope.rope_kv_write(qkv, positions, cos_sin, None, None, 0.0, *cache, torch.tensor([-1, 17]), hq, hkv, d)
    assert cache[0].abs().sum(-1).nonzero().tolist() == [[1, 0, 1]]
    other = torch.zeros(2, 1, 16, d), torch.zeros(2, 1, 16, d)
    rope.rope_kv_write(both, positions, cos_sin, None, None, 0.0, *other, torch.tensor([3, 17]), hq, hkv, d)
    assert torch.equal(qkv, both)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_keeps_values_over_their_scale_and_saturates(dtype: torch.dtype) -> None:
    hq, hkv, d = 2, 2, 32
    qkv = randn(3, 6 * d)
    qkv[1, -1] = 1e6
    cos_sin = torch.cat((torch.ones(4, d // 2), torch.zeros(4, d // 2)), dim=1)
    shape, _ = rope.kv_cache_shapes(2, 16, hkv, d)
    k_cache, v_cache = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    slots = torch.tensor([16, 17, 18])
    rope.rope_kv_write(
        qkv, torch.zeros(3, dtype=torch.int32), cos_sin, None, None, 0.0, k_cache, v_cache, slots, hq, hkv, d,
        k_scale=0.5, v_scale=2.0,
    )  # fmt: skip
    heads = qkv.view(3, 6, d).transpose(0, 1)
    near = {"rtol": 0.07 if dtype == torch.float8_e4m3fn else 0.14, "atol": 2e-3}
    torch.testing.assert_close(k_cache[1, :, :3].float() * 0.5, heads[2:4], **near)
    assert v_cache[1, 1, 1, -1].float() == torch.finfo(dtype).max
    heads[5, 1, -1] = 2.0 * torch.finfo(dtype).max
    torch.testing.assert_close(v_cache[1, :, :3].float() * 2.0, heads[4:6], **near)
