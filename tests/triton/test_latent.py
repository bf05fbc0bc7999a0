"""Latent attention's kernels in Triton's interpreter, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.base.errors import DeviceError
from octavo.ops import reference, reference_attention
from octavo.ops.operands import Latent
from octavo.ops.step import PlannedArrays
from octavo.ops.triton import experts, latent
from octavo.ops.triton.attention_plan import AttentionPlanner
from support.paged_caches import random_tables
from support.tensors import randn

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
BLOCK = 16
LATENTS = [
    Latent(num_heads=5, nope_dim=24, rank=48, rope_dim=16),
    Latent(num_heads=18, nope_dim=16, rank=32, rope_dim=32),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", LATENTS)
@pytest.mark.parametrize("seqs", [[(1, 1), (300, 1), (33, 9)], [(270, 1)], [(20, 20), (40, 3)]])
def test_attention_of_decoding_and_of_prompts(seqs: list[tuple[int, int]], shape: Latent, dtype: torch.dtype) -> None:
    lens = torch.tensor([length for length, _ in seqs], dtype=torch.int32)
    starts = torch.tensor([0, *torch.tensor([count for _, count in seqs]).cumsum(0)], dtype=torch.int32)
    tables, num_blocks = random_tables(lens.tolist(), BLOCK)
    cache = torch.full((num_blocks, BLOCK, shape.width), torch.nan, dtype=dtype)
    for i, length in enumerate(lens.tolist()):
        places = torch.arange(length)
        cache[tables[i, places // BLOCK].long(), places % BLOCK] = randn(length, shape.width, seed=i).to(dtype)
    q = randn(int(starts[-1]), shape.num_heads * shape.width).to(dtype)
    out = torch.full((len(q), shape.num_heads * shape.rank), torch.nan, dtype=dtype)
    expected = torch.empty(out.shape)
    reference_attention.latent_attention(expected, q.float(), cache, tables, lens, starts, shape, 0.2)
    latent.latent_attention(out, q, cache, tables, lens, starts, shape, 0.2)
    torch.testing.assert_close(out.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_padded_plan_with_prompts_gives_the_same_bits() -> None:
    shape, lens, starts = LATENTS[0], np.array([300, 280, 20], np.int32), np.array([0, 1, 4, 9], np.int32)
    tables, num_blocks = random_tables(lens.tolist(), BLOCK)
    cache, q = randn(num_blocks, BLOCK, shape.width), randn(12, shape.num_heads * shape.width)
    planner = AttentionPlanner(shape, torch.device("cpu"), torch.float32)

    def run(arrays: PlannedArrays, num_rows: int, padding: int) -> torch.Tensor:
        out = torch.full((num_rows, shape.num_heads * shape.rank), torch.nan)
        latent.latent_attention(
            out, q[:num_rows], cache, torch.nn.functional.pad(tables, (0, 0, 0, padding)),
            torch.from_numpy(np.pad(lens, (0, padding))), torch.from_numpy(np.pad(starts, (0, padding), mode="edge")),
            shape, 0.2, plan=planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors]),
        )  # fmt: skip
        return out

    expected = run(planner.arrays(lens, starts, 1), 9, 0)
    padded = planner.padded_arrays(lens, starts, 1, num_seqs=4, num_prompt_tokens=8)
    assert padded is not None
    found = run(padded, 12, 1)
    assert torch.equal(found[:9], expected) and found[9:].isnan().all()


@pytest.mark.parametrize("shape", LATENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_writes_the_rows_that_have_a_slot(dtype: torch.dtype, shape: Latent) -> None:
    rows = 6
    angles = torch.arange(32.0)[:, None] * torch.logspace(0, -3, shape.rope_dim // 2)[None, :]
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1)
    q = randn(rows, shape.num_heads * (shape.nope_dim + shape.rope_dim)).to(dtype)
    kv, norm = randn(rows, shape.width).to(dtype), randn(shape.rank) + 1
    slots, positions = torch.tensor([17, 3, -1, 40, 0, 8]), torch.arange(rows, dtype=torch.int32) + 5
    q_latent = randn(rows, shape.num_heads * shape.width).to(dtype)
    expected, cache = q_latent.float(), torch.zeros(3, BLOCK, shape.width, dtype=dtype)
    wanted = torch.zeros(cache.shape)
    kept = slots >= 0
    reference_attention.latent_write(
        expected, q.float(), kv.float(), positions, cos_sin, norm, 1e-6, torch.zeros(cache.shape), slots.abs(), shape
    )
    reference_attention.latent_write(
        expected[kept].clone(), q[kept].float(), kv[kept].float(), positions[kept], cos_sin, norm, 1e-6, wanted,
        slots[kept], shape,
    )  # fmt: skip
    latent.latent_write(q_latent, q, kv, positions, cos_sin, norm, 1e-6, cache, slots, shape)
    for found, right in ((q_latent, expected), (cache, wanted)):
        torch.testing.assert_close(found.float(), right, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_library_without_kernels_for_latents_is_refused_where_it_is_asked_for() -> None:
    with pytest.raises(DeviceError, match="--attention-backend flashinfer"):
        AttentionPlanner(LATENTS[0], torch.device("cpu"), torch.float32, library=object(), is_required=True)


@pytest.mark.parametrize("rows", [0, 3, 70])
def test_products_of_heads(rows: int) -> None:
    weights = [([randn(70, 24, seed=head)], [None]) for head in range(3)]
    packed = experts.pack_floats(weights, torch.float32, lambda weight: weight, is_invariant=False)
    x = randn(rows, 3 * 32)
    out, expected = torch.zeros(rows, 3 * 80), torch.zeros(rows, 3 * 80)
    latent.head_linear(out, x, packed)
    reference.head_linear(expected, x, reference.pack_heads(weights))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-5)
