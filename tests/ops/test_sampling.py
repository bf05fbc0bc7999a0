"""Sampling: the draw follows the stated distribution, and nothing but seed, position and the row decides it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.reference_sampling import (
    FLAG_BAD_LOGITS,
    FLAG_OK,
    adjusted_logits,
    distribution,
    gumbel,
    noise_bits,
)
from octavo.ops.sampling_batch import SamplingBatch, csr_offsets
from octavo.ops.table import Ops, bind

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE = bind("cpu", "reference")
NATIVE = bind("cpu")


def _logits(rows: int, vocab: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


def _batch(rows: int, **values: float) -> SamplingBatch:
    """Seeds 0, 1, 2 ..., position 0; other parameters alike in all rows."""
    batch = SamplingBatch.allocate(rows)
    batch.reset(rows)
    batch.seeds[:] = torch.arange(rows)
    for name, value in values.items():
        getattr(batch, name)[:] = value
    return batch


def _sample(ops: Ops, logits: Tensor, batch: SamplingBatch) -> tuple[Tensor, Tensor]:
    ids = torch.full((len(logits),), -7, dtype=torch.int32)
    flags = torch.full((len(logits),), -7, dtype=torch.int32)
    before = logits.clone()
    ops.sample(logits, batch, ids, flags)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "sample puts the logits back"
    return ids, flags


FILTERS = [
    {},
    {"top_k": 5},
    {"top_p": 0.7},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"top_k": 12, "top_p": 0.8},
    {"top_k": 40, "top_p": 0.9, "min_p": 0.02},
    {"min_p": 1.0},
    {"top_k": 1},
    {"top_p": 1e-6},
]
_IDS = [",".join(f"{k}={v}" for k, v in f.items()) or "plain" for f in FILTERS]


@pytest.mark.parametrize("filters", FILTERS, ids=_IDS)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.0])
def test_s1_to_s4_draws_follow_the_distribution(filters: dict[str, float], temperature: float) -> None:
    draws, vocab = 20_000, 61
    row = _logits(1, vocab, 1.5)
    row[0, 20:26] = row[0, 3]  # ties
    batch = _batch(draws, temperature=temperature, **filters)
    ids, flags = _sample(NATIVE, row.repeat(draws, 1), batch)
    assert (flags == FLAG_OK).all()
    wanted = distribution(
        row[0], temperature, int(filters.get("top_k", 0)), filters.get("top_p", 1.0), filters.get("min_p", 0.0)
    )
    counts = torch.bincount(ids.long(), minlength=vocab).double()
    assert (counts[wanted == 0] == 0).all(), "a token that was filtered out"
    likely = wanted * draws >= 5
    chi2 = float(((counts - wanted * draws).square() / (wanted * draws))[likely].sum())
    freedom = max(int(likely.sum()) - 1, 1)
    assert chi2 < freedom + 6 * math.sqrt(2 * freedom) + 6


@pytest.mark.parametrize("filters", FILTERS, ids=_IDS)
@pytest.mark.parametrize(("vocab", "spread"), [(50_001, 3.0), (4099, 0.2), (17, 10.0)])
def test_tokens_are_the_reference_s(filters: dict[str, float], vocab: int, spread: float) -> None:
    rows = 24
    logits = _logits(rows, vocab, spread)
    logits[:, 5:9] = logits.max(dim=1, keepdim=True).values - 0.5
    batch = _batch(rows, temperature=0.9, **filters)
    native, reference = _sample(NATIVE, logits, batch)[0], _sample(REFERENCE, logits, batch)[0]
    # The sum that top_p's border falls on is rounded differently: a draw may meet one token more or less.
    assert (native != reference).sum() <= (1 if "top_p" in filters else 0)


def test_philox_gives_the_numbers_of_its_authors() -> None:
    """The known answers of Random123: one counter's four words are those of tokens 16 apart."""
    ids = torch.tensor([0, 16, 32, 48])
    assert noise_bits(0, 0, ids).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert len(noise_bits(3, 2**40 + 1, torch.arange(200_000)).unique()) > 199_990


def test_noise_is_the_gumbel_number_of_its_bits() -> None:
    bits = torch.cat([torch.arange(100), 2**30 + torch.arange(-50, 50), 2**32 - 1 - torch.arange(100)])
    bits = torch.cat([bits, noise_bits(7, 1, torch.arange(5000))])
    v = (bits.double() + 0.5) * 2.0**-32
    exact = -torch.log(-torch.log1p(-v))
    # v is a float32: near 0 it has their relative precision, near 1 its complement has.
    torch.testing.assert_close(gumbel(bits).double(), exact, rtol=3e-7, atol=3e-7)


def test_levels_and_reference_agree_to_the_last_bit_of_the_noise() -> None:
    """Two tokens whose scores are equal, or one step of float32 apart: any other noise would name the other."""
    rows, ids = 600, torch.tensor([3, 90])
    batch = _batch(rows, temperature=1.0)
    batch.seeds[:] = torch.arange(rows) * 0x9E3779B97F4A7C1
    batch.positions[:] = torch.arange(rows) * 2**31
    keys = zip(batch.seeds.tolist(), batch.positions.tolist(), strict=True)
    noise = torch.stack([gumbel(noise_bits(seed, position, ids)) for seed, position in keys])
    logits = torch.full((rows, 200), -60.0)
    logits[:, 3] = 0.0
    logits[:, 90] = noise[:, 0] - noise[:, 1] + (torch.arange(rows) % 3 - 1) * 2.0**-23
    drawn = _sample(NATIVE, logits, batch)[0]
    assert torch.equal(drawn, _sample(REFERENCE, logits, batch)[0])
    assert set(drawn.tolist()) == {3, 90}


def test_two_distributions_that_are_close_are_drawn_alike() -> None:
    """What a draft's acceptance rests on: with the same noise, tokens differ about as often as the distributions do."""
    rows, vocab = 4000, 500
    logits = _logits(rows, vocab, 2.0)
    near = logits + _logits(rows, vocab, 0.05, seed=1)
    distance = 0.5 * (logits.softmax(-1) - near.softmax(-1)).abs().sum(-1).mean()
    batch = _batch(rows, temperature=1.0)
    differ = (_sample(NATIVE, logits, batch)[0] != _sample(NATIVE, near, batch)[0]).float().mean()
    assert differ < 2.5 * distance


def test_s8_seed_and_position_decide_the_token_in_any_batch() -> None:
    logits = _logits(40, 5003)
    batch = _batch(40, temperature=1.0)
    batch.top_p[::2], batch.top_k[::3], batch.temperature[::5] = 0.9, 20, 0.0
    batch.positions[:] = torch.arange(40) * 3
    for threads in (1, 2, 3):
        _cpu.set_num_threads(threads)
        whole = _sample(NATIVE, logits, batch)[0]
        for row in range(40):
            alone = SamplingBatch.allocate(1)
            alone.reset(1)
            for name in ("temperature", "top_p", "min_p", "top_k", "seeds", "positions"):
                getattr(alone, name)[0] = getattr(batch, name)[row]
            assert _sample(NATIVE, logits[row : row + 1].clone(), alone)[0][0] == whole[row]
    same = logits[:1].repeat(200, 1)
    moved = _batch(200, temperature=1.0)
    moved.seeds[:] = 5
    moved.positions[:] = torch.arange(200)
    assert len(_sample(NATIVE, same, moved)[0].unique()) > 20, "the position moves the draw"


@pytest.mark.parametrize("rows", [1, 9])
def test_s1_greedy_takes_the_lowest_of_the_best(rows: int) -> None:
    logits = _logits(rows, 40_003)
    best = logits.max() + 1
    logits[:, [40_002, 17_000, 16_999, 30_000]] = best
    ids, flags = _sample(NATIVE, logits, _batch(rows))
    assert (ids == 16_999).all() and (flags == FLAG_OK).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 9])
def test_rows_without_a_distribution_are_flagged_alone(temperature: float, rows: int) -> None:
    for place in (0, 1, 777, 20_000, 20_010):
        for poison in (math.nan, math.inf):
            logits = _logits(rows, 20_011)
            logits[rows - 1, place] = poison
            ids, flags = _sample(NATIVE, logits, _batch(rows, temperature=temperature))
            assert flags.tolist() == [FLAG_OK] * (rows - 1) + [FLAG_BAD_LOGITS]
            assert ids[rows - 1] == -1 and (ids[: rows - 1] >= 0).all()
    logits = torch.full((rows, 100), -math.inf)
    assert (_sample(NATIVE, logits, _batch(rows, temperature=temperature))[1] == FLAG_BAD_LOGITS).all()
    logits[:, 63] = 2.0
    assert (_sample(NATIVE, logits, _batch(rows, temperature=temperature))[0] == 63).all()


def _sparse_batch(rows: int, vocab: int) -> SamplingBatch:
    generator = np.random.default_rng(3)
    batch = _batch(rows, temperature=0.0)
    batch.repetition[:] = torch.linspace(0.5, 2.0, rows)
    batch.frequency[:] = torch.linspace(-1.0, 2.0, rows)
    batch.presence[:] = torch.linspace(2.0, -1.0, rows)
    lengths = generator.integers(0, 30, rows)
    lengths[0] = 0
    ids = np.concatenate([generator.choice(vocab, n, replace=False) for n in lengths]).astype(np.int32)
    counts = generator.integers(0, 4, len(ids)).astype(np.int32)
    prompt = ((counts == 0) | (generator.integers(0, 2, len(ids)) == 1)).astype(np.int32)
    offsets = csr_offsets(lengths.tolist())
    batch.penalties.set_counts(offsets, ids, counts, prompt)
    batch.bias.set_values(offsets, (ids + 7) % vocab, generator.normal(0, 5, len(ids)).astype(np.float32))
    batch.masks.set(csr_offsets([2] * rows), np.tile(np.array([1, 4], np.int32), rows))
    return batch


@pytest.mark.parametrize("rows", [1, 11])
def test_s12_bias_masks_and_penalties_are_the_reference_s(rows: int) -> None:
    vocab = 40
    logits = _logits(rows, vocab)
    batch = _sparse_batch(rows, vocab)
    assert torch.equal(_sample(NATIVE, logits, batch)[0], _sample(REFERENCE, logits, batch)[0])
    batch.temperature[:] = 1.0
    assert torch.equal(_sample(NATIVE, logits, batch)[0], _sample(REFERENCE, logits, batch)[0])


def test_s5_to_s7_penalties_follow_the_written_rule() -> None:
    batch = _batch(1)
    batch.repetition[0], batch.frequency[0], batch.presence[0] = 2.0, 0.5, 0.25
    ids = np.array([0, 1, 2, 3], np.int32)
    batch.penalties.set_counts(
        csr_offsets([4]), ids, np.array([0, 3, 0, 1], np.int32), np.array([1, 0, 1, 1], np.int32)
    )
    logits = torch.tensor([4.0, 4.0, -4.0, -4.0, 4.0])
    # prompt only: repetition; output: repetition, count * frequency, presence; negative logits grow.
    assert adjusted_logits(logits, batch, 0).tolist() == [2.0, 2.0 - 1.5 - 0.25, -8.0, -8.0 - 0.5 - 0.25, 4.0]


@pytest.mark.parametrize(("rows", "vocab", "k"), [(1, 49_152, 20), (5, 1003, 1), (3, 50, 50), (2, 300, 0)])
def test_logprobs_are_the_reference_s(rows: int, vocab: int, k: int) -> None:
    logits = _logits(rows, vocab)
    logits[:, 10:14] = logits.max(dim=1, keepdim=True).values  # ties
    logits[:, 20] = -math.inf
    ids = torch.arange(rows, dtype=torch.int32) + 11
    ids[-1] = vocab - 1
    for got, wanted in zip(NATIVE.logprobs(logits, ids, k), REFERENCE.logprobs(logits, ids, k), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("vocab", "num_words"), [(64, 2), (70, 3), (50, 1), (20, 1), (31, 2), (1000, 40), (49_152, 1536)]
)
def test_what_a_mask_does_not_admit_is_forbidden_in_its_own_row(vocab: int, num_words: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    words = torch.randint(-(2**31), 2**31, (4, num_words), generator=generator).to(torch.int32)
    words[0] = 0
    words[1] = -1
    words[2, ::2] = -1
    rows = torch.tensor([4, 0, 2, 1])
    logits = _logits(6, vocab)
    native, reference = logits.clone(), logits.clone()
    NATIVE.forbid(native, rows, words)
    REFERENCE.forbid(reference, rows, words)
    assert torch.equal(native, reference)
    assert torch.equal(native[[3, 5]], logits[[3, 5]])
    assert native[4].isneginf().all() and torch.equal(native[0, : 32 * num_words], logits[0, : 32 * num_words])
    for i in range(min(vocab, 100)):
        admitted = i < 32 * num_words and bool(int(words[3, i // 32]) >> (i % 32) & 1)
        assert native[1, i] == (logits[1, i] if admitted else -math.inf)


def test_no_masks_forbid_nothing() -> None:
    logits = _logits(2, 40)
    for ops in (NATIVE, REFERENCE):
        edited = logits.clone()
        ops.forbid(edited, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int32))
        assert torch.equal(edited, logits)
