"""Caches of a byte a value, at every instruction-set level: what is written, bit for bit, and what attention reads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.ops import reference_attention
from octavo.ops.operands import Latent
from octavo.ops.table import Ops, bind
from support.paged_caches import random_tables
from support.tensors import randn

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")
TYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)
HEADS = ((9, 3, 64), (3, 3, 20), (8, 1, 96))
#: (context, tokens of this step).
SEQS = ((1, 1), (130, 1), (40, 40), (300, 33), (17, 2), (129, 129))
LENS = [length for length, _ in SEQS]
#: How far attention over such a cache may be from that over the floats: half a step of what is rounded.
ERRORS = {torch.float8_e4m3fn: 0.04, torch.float8_e5m2: 0.08, torch.int8: 0.02}


def garbage(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory that reads as NaN wherever nobody wrote."""
    return torch.full((*shape[:-1], shape[-1] * dtype.itemsize), 0xFF, dtype=torch.uint8).view(dtype)


def filled(
    ops: Ops, heads: tuple[int, int, int], dtype: torch.dtype, block_size: int, scales: dict[str, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of all of `LENS`, written out of order, and the block tables."""
    hq, hkv, d = heads
    tables, num_blocks = random_tables(LENS, block_size)
    k, v = (garbage(shape, dtype) for shape in ops.kv_cache_shapes(num_blocks, block_size, hkv, d, dtype))
    for i, length in enumerate(LENS):
        places = torch.arange(length)
        slots = tables[i, places // block_size].long() * block_size + places % block_size
        order = torch.randperm(length, generator=torch.Generator().manual_seed(i))
        qkv = randn(length, (hq + 2 * hkv) * d, seed=i)[order] * torch.logspace(-2, 1, length)[order, None]
        positions = places.to(torch.int32)
        ops.rope_kv_write(qkv, positions, None, None, None, 0.0, k, v, slots[order], hq, hkv, d, **scales)
    return k, v, tables


def attend(
    ops: Ops, heads: tuple[int, int, int], cache: tuple[Tensor, Tensor, Tensor], qkv: Tensor, **options: Any
) -> Tensor:
    hq, hkv, d = heads
    starts = torch.tensor([0, *torch.tensor([count for _, count in SEQS]).cumsum(0)], dtype=torch.int32)
    out = torch.full((len(qkv), hq * d), torch.nan)
    lens = torch.tensor(LENS, dtype=torch.int32)
    ops.attention(out, qkv, *cache[:2], cache[2], lens, starts, hq, hkv, d, d**-0.5, **options)
    return out


@pytest.mark.parametrize(("heads", "block_size", "dtype"), list(zip(HEADS, (16, 32, 64), TYPES, strict=True)))
def test_the_same_bits_are_written_and_attention_is_that_of_the_reference(
    heads: tuple[int, int, int], block_size: int, dtype: torch.dtype
) -> None:
    scales = {"k_scale": 0.03, "v_scale": 0.25} if dtype == torch.float8_e4m3fn else {}
    cache, expected = (filled(ops, heads, dtype, block_size, scales) for ops in (NATIVE, REFERENCE))
    for ours, theirs in zip(cache, expected, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))
    hq, hkv, d = heads
    qkv = randn(sum(count for _, count in SEQS), (hq + 2 * hkv) * d, seed=9)
    slopes, sinks = 2.0 ** -torch.arange(1.0, hq + 1), 4 * randn(hq)
    for options in (
        {},
        {"window": 50},
        {"window": 24, "chunked": True, "softcap": 5.0},
        {"slopes": slopes, "sinks": sinks},
    ):
        found = attend(NATIVE, heads, cache, qkv, **options, **scales)
        wanted = attend(REFERENCE, heads, expected, qkv, **options, **scales)
        assert torch.isfinite(wanted).all()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    floats = filled(REFERENCE, heads, torch.float32, block_size, {})
    exact = attend(REFERENCE, heads, floats, qkv * 0.02)
    assert (attend(NATIVE, heads, cache, qkv * 0.02, **scales) - exact).norm() < ERRORS[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_token_is_computed_alone_as_in_its_prompt(dtype: torch.dtype) -> None:
    heads = (9, 3, 64)
    cache = filled(NATIVE, heads, dtype, 16, {})
    hq, hkv, d = heads
    qkv = randn(sum(count for _, count in SEQS), (hq + 2 * hkv) * d, seed=9)
    whole, row = attend(NATIVE, heads, cache, qkv), 0
    for i, (length, count) in enumerate(SEQS):
        for at in range(0, count, 7):
            out = torch.empty(1, hq * d)
            lens, starts = torch.tensor([length - count + at + 1], dtype=torch.int32), torch.tensor([0, 1])
            one = qkv[row + at : row + at + 1].contiguous()
            NATIVE.attention(out, one, *cache[:2], cache[2][i : i + 1], lens, starts.int(), hq, hkv, d, d**-0.5)
            assert torch.equal(out[0], whole[row + at])
        row += count


def written(values: Tensor, dtype: torch.dtype, **scales: float) -> tuple[Tensor, Tensor]:
    """The cache behind one token of one head, whose key and value these are."""
    qkv = torch.cat((torch.zeros_like(values), values, values))[None]
    shapes = NATIVE.kv_cache_shapes(1, 16, 1, len(values), dtype)
    k, v = (torch.zeros(shape, dtype=torch.uint8).view(dtype) for shape in shapes)
    place = torch.zeros(1, dtype=torch.int32)
    NATIVE.rope_kv_write(qkv, place, None, None, None, 0.0, k, v, place.long(), 1, 1, len(values), **scales)
    return k, v


@pytest.mark.parametrize("dtype", TYPES[:2])
def test_every_float8_is_read_as_it_is_and_what_lies_between_goes_to_the_nearest(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    codes = codes[codes.isfinite()].sort().values
    largest = torch.finfo(dtype).max
    middles = (codes[1:] + codes[:-1]) / 2
    some = torch.cat((codes, middles, middles * (1 + 1e-6), middles * (1 - 1e-6), torch.tensor([1e9, -1e9, 464.0])))
    for part in some.split(512):
        values = torch.nn.functional.pad(part, (0, -len(part) % 16))
        _, v = written(values, dtype)
        assert torch.equal(v[0, 0, 0].float(), values.clamp(-largest, largest).to(dtype).float())
        # One key has all of the weight: what comes out is its value.
        k = torch.zeros(NATIVE.kv_cache_shapes(1, 16, 1, len(values), dtype)[0], dtype=dtype)
        out = torch.empty(1, len(values))
        ones, starts = torch.ones(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
        qkv = torch.zeros(1, 3 * len(values))
        NATIVE.attention(out, qkv, k, v, torch.zeros(1, 1, dtype=torch.int32), ones, starts, 1, 1, len(values), 1.0)
        assert torch.equal(out[0], v[0, 0, 0].float())


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_none_behind_the_cache(dtype: torch.dtype, bad: float) -> None:
    values = randn(32)
    values[5] = bad
    k, v = written(values, dtype)
    out = torch.empty(1, 32)
    ones, starts = torch.ones(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    NATIVE.attention(out, torch.zeros(1, 96), k, v, torch.zeros(1, 1, dtype=torch.int32), ones, starts, 1, 1, 32, 1.0)
    if dtype == torch.int8:
        assert out.isnan().all()
    elif bad == torch.inf:  # float8 has no room for more than its largest value
        assert out[0, 5] == torch.finfo(dtype).max
    else:
        assert out.isnan().any()


def test_zeros_in_int8_are_zeros() -> None:
    k, v = written(torch.zeros(16), torch.int8)
    assert not k.any() and not v.any()


@pytest.mark.parametrize("dtype", TYPES)
def test_latents(dtype: torch.dtype) -> None:
    latent = Latent(num_heads=4, nope_dim=24, rank=48, rope_dim=16)
    tables, num_blocks = random_tables(LENS, 16)
    angles = torch.arange(512.0)[:, None] * torch.logspace(0, -3, 8)[None, :]
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    total = sum(count for _, count in SEQS)
    starts = torch.tensor([0, *torch.tensor([count for _, count in SEQS]).cumsum(0)], dtype=torch.int32)
    q = randn(total, latent.num_heads * latent.width)
    results = []
    for ops, kind in ((NATIVE, dtype), (REFERENCE, dtype), (REFERENCE, torch.float32)):
        cache = garbage(ops.latent_cache_shape(num_blocks, 16, latent, kind), kind)
        for i, length in enumerate(LENS):
            places = torch.arange(length)
            slots = tables[i, places // 16].long() * 16 + places % 16
            own_q, q_latent = randn(length, 4 * 40), torch.zeros(length, 4 * latent.width)
            positions, kv, norm = places.to(torch.int32), randn(length, latent.width, seed=i), randn(48)
            ops.latent_write(q_latent, own_q, kv, positions, cos_sin, norm, 1e-6, cache, slots, latent)
        out = torch.full((total, latent.num_heads * latent.rank), torch.nan)
        ops.latent_attention(out, q, cache, tables, torch.tensor(LENS, dtype=torch.int32), starts, latent, 0.2)
        results.append(out)
    found, wanted, exact = results
    # A norm may round otherwise, and then a value of the cache is its neighbour.
    assert (found - wanted).norm() < 0.2 * ERRORS[dtype] * exact.norm()
    assert (found - exact).norm() < ERRORS[dtype] * exact.norm()


def test_the_reference_keeps_scales_behind_each_tile() -> None:
    values = torch.linspace(-2.0, 1.0, 16)
    k, v = written(values, torch.int8)
    assert k.shape == (1, 1, 1, 20, 16) and v.shape == (1, 1, 1, 16 * 16 + reference_attention.TILE_SCALE_BYTES)
    scale = v[0, 0, 0, 256:].view(torch.float32)[0]
    assert scale == torch.tensor(2.0) / 127 and v[0, 0, 0, 0] == -127
    torch.testing.assert_close(v[0, 0, 0, :16] * scale, values, rtol=0, atol=float(scale) / 2)
