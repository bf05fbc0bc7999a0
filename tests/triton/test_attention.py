"""Paged attention in Triton's interpreter, against the reference in float32; and what its bits may not depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from octavo.ops.operands import Heads, KeyBlocks
from octavo.ops.triton import attention_plan
from octavo.ops.triton.attention import CHUNK, AttentionPlanner
from octavo.ops.triton.rope import kv_cache_shapes
from support.triton_steps import Step


@pytest.mark.parametrize("heads", [(9, 3, 64), (4, 4, 80), (8, 1, 96), (14, 2, 128), (2, 1, 256), (3, 3, 20)])
def test_heads_of_all_kinds(heads: tuple[int, int, int]) -> None:
    Step([(33, 1), (1, 1), (40, 17), (5, 5)], heads).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    Step([(70, 1), (66, 30), (1, 1)], (4, 2, 64), dtype).check()


@pytest.mark.parametrize("context", [1, 31, 32, 33, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 17])
@pytest.mark.parametrize("window", [0, 5, CHUNK + 3])
def test_decoding_around_the_borders_of_tiles_and_chunks(context: int, window: int) -> None:
    Step([(context, 1)], (4, 2, 16)).check(window=window)


def test_decoding_with_more_chunks_than_are_combined_at_once() -> None:
    Step([(17 * CHUNK + 3, 1)], (2, 1, 16)).check()


@pytest.mark.parametrize("window", [0, 3, 40])
@pytest.mark.parametrize(("context", "count"), [(2, 2), (31, 31), (33, 16), (64, 33), (100, 3), (70, 70)])
def test_prompts_around_the_borders_of_tiles(context: int, count: int, window: int) -> None:
    Step([(context, count), (3, 2)], (6, 2, 16)).check(window=window)


def test_capped_scores() -> None:
    Step([(50, 1), (40, 20)], (4, 2, 32)).check(softcap=1.5, scale=2.0)
    Step([(50, 1), (40, 20)], (4, 2, 32)).check(softcap=30.0, scale=90.0)


def test_scores_that_fall_with_the_distance() -> None:
    slopes = 2.0 ** -torch.arange(1.0, 5.0)
    Step([(50, 1), (CHUNK + 9, 1), (40, 20)], (4, 2, 32)).check(slopes=slopes)
    Step([(90, 1), (70, 70)], (4, 4, 16), torch.bfloat16).check(slopes=slopes)


def test_chunked_windows() -> None:
    Step([(50, 1), (CHUNK + 9, 1), (90, 70)], (4, 2, 32)).check(window=24, chunked=True)


def test_rows_that_see_all_keys() -> None:
    """Also more queries than keys, as of a decoder that looks at an encoder's short text; and queries alone."""
    seqs = [(50, 1), (90, 70), (5, 40), (64, 64), (33, 2)]
    Step(seqs, (4, 2, 32)).check(causal=False)
    Step(seqs, (9, 3, 64), torch.bfloat16).check(causal=False, softcap=30.0)
    step = Step(seqs, (4, 4, 16))
    expected = step.run(causal=False)
    step.qkv = step.qkv[:, : 4 * 16].contiguous()
    assert torch.equal(step.run(causal=False), expected)


def test_rows_that_see_to_both_sides() -> None:
    step = Step([(70, 70), (5, 5), (1, 1)], (4, 2, 32))
    for window in (1, 20):
        step.check(causal=False, window=window)
    step.check(causal=False, slopes=2.0 ** -torch.arange(1.0, 5.0))
    for reach in (0, 9):
        step.check(causal=False, biases=torch.randn(4, 2 * reach + 1))
    Step([(50, 1), (90, 70)], (4, 2, 32)).check(biases=torch.randn(4, 15))


@pytest.mark.parametrize("window", [0, 20])
def test_rows_that_see_the_whole_of_their_span(window: int) -> None:
    step = Step([(50, 1), (90, 70), (40, 40)], (4, 2, 32))
    positions = torch.cat([torch.arange(n - count, n) for n, count in zip(step.lens, step.counts, strict=True)])
    lens = torch.tensor(step.lens).repeat_interleave(torch.tensor(step.counts))
    for span in (1, 7, 33):
        ends = torch.minimum((positions // span + 1) * span, lens).to(torch.int32)
        step.check(key_ends=ends, window=window)
    if not window:  # rows behind the keys that are seen, as of silence behind a sound
        ends = torch.tensor([50, *[13] * 70, *[33] * 40], dtype=torch.int32)
        step.check(key_ends=ends)


@pytest.mark.parametrize(
    "blocks",
    [KeyBlocks(size=64, local=2, stride=4, step=1), KeyBlocks(size=16, local=1, stride=5, step=0),
     KeyBlocks(size=48, local=3, stride=100, step=12)],
)  # fmt: skip
def test_heads_that_see_some_blocks_of_keys(blocks: KeyBlocks) -> None:
    """Also chunks in which a head sees nothing."""
    Step([(50, 1), (3 * CHUNK + 9, 1), (200, 70)], (4, 2, 16)).check(blocks=blocks)
    Step([(CHUNK + 90, 1), (140, 33)], (6, 1, 32), torch.bfloat16).check(blocks=blocks)


def test_sinks_take_their_share() -> None:
    """Of contexts of one chunk and of several, and of prompts."""
    sinks = torch.tensor([-30.0, 0.5, 3.0, 40.0])
    Step([(50, 1), (CHUNK + 9, 1), (40, 20)], (4, 2, 32)).check(sinks=sinks)


def test_a_sequence_alone_has_the_bits_that_it_has_in_company() -> None:
    step = Step([(CHUNK + 40, 1), (3, 1), (50, 9), (20, 20)], (4, 2, 32))
    whole = step.run()
    for i in range(4):
        alone = Step([(CHUNK + 40, 1), (3, 1), (50, 9), (20, 20)], (4, 2, 32))
        rows = slice(int(step.starts[i]), int(step.starts[i + 1]))
        alone.qkv, alone.tables, alone.seq_lens = (
            step.qkv[rows].clone(),
            step.tables[i : i + 1],
            step.seq_lens[i : i + 1],
        )
        alone.starts = torch.tensor([0, step.counts[i]], dtype=torch.int32)
        assert torch.equal(alone.run(), whole[rows])


def plan_of(step: Step, num_decodes: int, size: int | None = None, num_prompt_tokens: int = 0) -> Any:
    hq, hkv, d = step.heads
    planner = AttentionPlanner(Heads(num_heads=hq, num_kv_heads=hkv, head_dim=d), torch.device("cpu"), torch.float32)
    if size is None:
        arrays = planner.arrays(step.seq_lens.numpy(), step.starts.numpy(), num_decodes)
    else:
        arrays = planner.padded_arrays(
            step.seq_lens.numpy(),
            step.starts.numpy(),
            num_decodes,
            num_seqs=size,
            num_prompt_tokens=num_prompt_tokens,
        )
    return planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])


@pytest.mark.parametrize("window", [0, 20])
def test_a_prompt_has_the_same_bits_however_it_is_cut(window: int) -> None:
    """Also where a piece is a single token, which the plan says is no decoding."""
    whole = Step([(75, 75)], (6, 2, 16))
    expected = whole.run(window=window)
    for cuts in ([0, 1, 2, 40, 41, 75], [*range(0, 75, 8), 75]):
        for begin, end in pairwise(cuts):
            piece = Step([(75, 75)], (6, 2, 16))
            piece.qkv = whole.qkv[begin:end].clone()
            piece.seq_lens = torch.tensor([end], dtype=torch.int32)
            piece.starts = torch.tensor([0, end - begin], dtype=torch.int32)
            found = piece.run(window=window, plan=plan_of(piece, num_decodes=0))
            assert torch.equal(found, expected[begin:end])


def test_a_padded_plan_gives_the_same_bits_and_its_padding_nothing() -> None:
    step = Step([(CHUNK + 7, 1), (20, 1), (2 * CHUNK + 1, 1)], (4, 2, 16))
    expected = step.run()
    padded = Step([(CHUNK + 7, 1), (20, 1), (2 * CHUNK + 1, 1)], (4, 2, 16))
    plan = plan_of(padded, 3, size=5)
    assert plan.num_decodes == 5 and plan.num_items == len(plan.items)
    padded.qkv = torch.cat([step.qkv, torch.full((2, step.qkv.shape[1]), torch.nan)])
    padded.tables = torch.cat([step.tables, torch.zeros(2, step.tables.shape[1], dtype=torch.int32)])
    padded.seq_lens = torch.cat([step.seq_lens, torch.zeros(2, dtype=torch.int32)])
    padded.starts = torch.arange(6, dtype=torch.int32)
    found = padded.run(plan=plan)
    assert torch.equal(found[:3], expected)
    assert found[3:].isnan().all(), "padding was written"


def test_a_padded_plan_with_prompts_gives_the_same_bits_and_its_padding_nothing() -> None:
    """Also where prompts see several chunks of keys: they are nothing for the kernel that combines them."""
    seqs = [(CHUNK + 7, 1), (20, 1), (2 * CHUNK + 1, 9), (40, 17), (30, 1)]
    step = Step(seqs, (4, 2, 16))
    expected = step.run(plan=plan_of(step, 2))
    padded = Step(seqs, (4, 2, 16))
    plan = plan_of(padded, 2, size=8, num_prompt_tokens=48)
    assert plan.num_decodes == 8 and plan.num_tiles == len(plan.tiles) == 48 // 16 + 8
    padded.qkv = torch.cat([step.qkv, torch.full((5, step.qkv.shape[1]), torch.nan)])
    padded.tables = torch.cat([step.tables, torch.ones(3, step.tables.shape[1], dtype=torch.int32)])
    padded.seq_lens = torch.cat([step.seq_lens, torch.zeros(3, dtype=torch.int32)])
    padded.starts = torch.cat([step.starts, step.starts[-1:].repeat(3)])
    found = padded.run(plan=plan)
    assert torch.equal(found[: len(expected)], expected)
    assert found[len(expected) :].isnan().all(), "padding was written"


def test_a_plan_that_needs_too_many_tiles_is_not_padded() -> None:
    def planned(num_prompts: int) -> Any:
        step = Step([(5, 1)] * num_prompts, (4, 2, 16))
        arrays = AttentionPlanner(
            Heads(num_heads=4, num_kv_heads=2, head_dim=16), torch.device("cpu"), torch.float32
        ).padded_arrays(step.seq_lens.numpy(), step.starts.numpy(), 0, num_seqs=64, num_prompt_tokens=64)
        return arrays

    assert len(planned(36).tensors[2]) == 36  # 64 tokens in tiles of 16, and 32 prompts
    assert planned(37) is None


def test_a_plan_that_needs_too_many_items_is_not_padded() -> None:
    heads = Heads(num_heads=1, num_kv_heads=1, head_dim=16)
    planner = AttentionPlanner(heads, torch.device("cpu"), torch.bfloat16)

    def planned(num_seqs: int, context: int) -> Any:
        lens = np.full(num_seqs, context, np.int32)
        return planner.padded_arrays(lens, np.arange(num_seqs + 1, dtype=np.int32), num_seqs, num_seqs=num_seqs)

    assert planned(8, 130_000) is not None  # eight contexts of a long model
    assert planned(2, 2100 * CHUNK) is None


def test_scratch_of_growing_contexts_is_bounded() -> None:
    """Steps that are not captured need one item more every few tokens; what is too small is kept for graphs."""
    planner = AttentionPlanner(Heads(num_heads=1, num_kv_heads=1, head_dim=16), torch.device("cpu"), torch.float32)
    for num_items in range(1, 700):
        arrays = planner.arrays(np.array([num_items * CHUNK], np.int32), np.array([0, 1], np.int32), 1)
        plan = planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])
        assert len(plan.partial) >= num_items
    assert sum(len(values) for values, _ in planner._scratch) < 3 * 700


def test_the_longest_tiles_come_first() -> None:
    seq_lens, starts = np.array([3, 900, 40], np.int32), np.array([0, 1, 201, 241], np.int32)
    tiles = attention_plan._tiles(seq_lens, starts, 1, 64)
    assert tiles.tolist() == [[1, 3], [1, 2], [1, 1], [1, 0], [2, 0]]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_float8_cache_is_what_it_holds_times_its_scales(dtype: torch.dtype) -> None:
    step = Step([(70, 1), (40, 20)], (4, 2, 32))
    caches = [cache.nan_to_num(0.0).to(dtype) for cache in step.caches]
    step.caches = tuple(cache.float() * scale for cache, scale in zip(caches, (0.5, 2.0), strict=True))
    expected = step.run()
    step.caches = tuple(caches)
    found = step.run(k_scale=0.5, v_scale=2.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert kv_cache_shapes(3, 16, 2, 32) == ((3, 2, 16, 32), (3, 2, 16, 32))


def test_a_plan_of_another_step_shows() -> None:
    """The kernels take the work from the plan: a law of the tests above."""
    step = Step([(40, 1), (20, 1)], (2, 1, 16))
    plan = plan_of(step, 2)
    shorter = replace(plan, starts=torch.tensor([0, 1, 1], dtype=torch.int32))
    assert step.run(plan=shorter)[1].isnan().all()
