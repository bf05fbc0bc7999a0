"""Attention over latents, at every instruction-set level, against the reference; and no row minds its company."""

from __future__ import annotations

import pytest
import torch

from octavo.ops.operands import Latent
from octavo.ops.table import Ops, bind
from support.paged_caches import random_tables
from support.tensors import randn

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")
BLOCK = 16
LATENTS = [
    Latent(num_heads=4, nope_dim=24, rank=48, rope_dim=16),
    Latent(num_heads=33, nope_dim=16, rank=64, rope_dim=32),
    Latent(num_heads=128, nope_dim=8, rank=32, rope_dim=16),
]
#: (context, tokens of this step).
SEQS = [(300, 1), (40, 40), (1, 1), (131, 20), (128, 128)]


def attend(
    ops: Ops, latent: Latent, cache: torch.Tensor, q: torch.Tensor, seqs: list[tuple[int, int]], tables: torch.Tensor
) -> torch.Tensor:
    starts = torch.tensor([0, *torch.tensor([count for _, count in seqs]).cumsum(0)], dtype=torch.int32)
    lens = torch.tensor([length for length, _ in seqs], dtype=torch.int32)
    out = torch.full((len(q), latent.num_heads * latent.rank), torch.nan)
    ops.latent_attention(out, q, cache, tables, lens, starts, latent, 0.2)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("latent", LATENTS)
def test_attention_is_that_of_the_reference_and_of_each_token_by_itself(latent: Latent, dtype: torch.dtype) -> None:
    tables, num_blocks = random_tables([length for length, _ in SEQS], BLOCK)
    pages = torch.full((num_blocks, BLOCK * latent.width + 48), torch.nan, dtype=dtype)  # blocks lie apart
    cache = pages[:, 16 : 16 + BLOCK * latent.width].unflatten(1, (BLOCK, latent.width))
    for i, (length, _) in enumerate(SEQS):
        places = torch.arange(length)
        cache[tables[i, places // BLOCK].long(), places % BLOCK] = randn(length, latent.width, seed=i).to(dtype)
    q = randn(sum(count for _, count in SEQS), latent.num_heads * latent.width)
    found = attend(NATIVE, latent, cache, q, SEQS, tables)
    torch.testing.assert_close(found, attend(REFERENCE, latent, cache, q, SEQS, tables), rtol=1e-4, atol=2e-5)
    row = 0
    for i, (length, count) in enumerate(SEQS):
        for at in {0, count // 2, count - 1}:
            alone = [(length - count + at + 1, 1)]
            one = attend(NATIVE, latent, cache, q[row + at : row + at + 1], alone, tables[i : i + 1])
            assert torch.equal(one[0], found[row + at])
        row += count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("latent", LATENTS)
def test_rows_of_the_cache_and_queries_are_those_of_the_reference(latent: Latent, dtype: torch.dtype) -> None:
    rows = 9
    angles = torch.arange(32.0)[:, None] * torch.logspace(0, -3, latent.rope_dim // 2)[None, :]
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    q, kv = randn(rows, latent.num_heads * (latent.nope_dim + latent.rope_dim)), randn(rows, latent.width)
    slots = torch.randperm(3 * BLOCK, generator=torch.Generator().manual_seed(1))[:rows]
    positions = torch.arange(rows, dtype=torch.int32) + 5
    norm, results = randn(latent.rank) + 1, []
    for ops in (REFERENCE, NATIVE):
        q_latent = randn(rows, latent.num_heads * latent.width)
        cache = torch.zeros(ops.latent_cache_shape(3, BLOCK, latent), dtype=dtype)
        ops.latent_write(q_latent, q, kv, positions, cos_sin, norm, 1e-6, cache, slots, latent)
        results.append((q_latent, cache.float()))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-2 if dtype is torch.bfloat16 else 2e-3, atol=1e-5)


def test_each_head_has_a_product_of_its_own() -> None:
    weights = [randn(20, 24, seed=head) for head in range(5)]
    x, results = randn(7, 5 * 32), []
    for ops in (REFERENCE, NATIVE):
        out = torch.zeros(7, 5 * 36)
        ops.head_linear(out, x, ops.pack_heads(([weight], [None]) for weight in weights))
        results.append(out)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert not results[1].view(7, 5, 36)[..., 20:].any()
