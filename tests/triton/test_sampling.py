"""Sampling in Triton's interpreter: the tokens of the reference, the laws of a draw, log probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops import reference_sampling as reference
from octavo.ops.sampling_batch import SamplingBatch, csr_offsets
from octavo.ops.triton import sampling, sampling_noise
from support.tensors import randn

VOCAB = 4200  # two parts


@triton.jit
def noise_kernel(out, seeds, positions, COUNT: tl.constexpr):
    ids = tl.arange(0, COUNT)
    tl.store(out + ids, sampling_noise.gumbel(tl.load(seeds), tl.load(positions), ids))


def batch_of(rows: list[dict[str, Any]]) -> SamplingBatch:
    """`rows`: what differs from greedy; bias, masks: of ids; penalties: ids -> (count, in_prompt)."""
    batch = SamplingBatch.allocate(len(rows))
    batch.reset(len(rows))
    for i, row in enumerate(rows):
        for name in row.keys() - {"bias", "masks", "penalties"}:
            getattr(batch, name)[i] = row[name]
    bias, masks, seen = ([row.get(name, {}) for row in rows] for name in ("bias", "masks", "penalties"))
    batch.bias.set_values(
        csr_offsets([len(b) for b in bias]),
        np.array([i for b in bias for i in b], np.int32),
        np.array([v for b in bias for v in b.values()], np.float32),
    )
    batch.masks.set(csr_offsets([len(m) for m in masks]), np.array([i for m in masks for i in m], np.int32))
    entries = [entry for s in seen for entry in s.values()]
    batch.penalties.set_counts(
        csr_offsets([len(s) for s in seen]),
        np.array([i for s in seen for i in s], np.int32),
        np.array([count for count, _ in entries], np.int32),
        np.array([prompt for _, prompt in entries], np.int32),
    )
    return batch


def drawn(logits: Tensor, batch: SamplingBatch) -> tuple[list[int], list[int]]:
    ids, flags = (torch.full((batch.num_rows,), 99, dtype=torch.int32) for _ in range(2))
    before = logits.clone()
    sampling.sample(logits, batch, ids, flags)
    assert torch.equal(logits.nan_to_num(1e9), before.nan_to_num(1e9)), "the logits were changed"
    return ids.tolist(), flags.tolist()


def check(logits: Tensor, rows: list[dict[str, Any]]) -> list[int]:
    """The reference's tokens, all of them."""
    batch = batch_of(rows)
    expected, expected_flags = (torch.empty(len(rows), dtype=torch.int32) for _ in range(2))
    reference.sample(logits, batch, expected, expected_flags)
    ids, flags = drawn(logits, batch)
    assert flags == expected_flags.tolist()
    assert ids == expected.tolist()
    return ids


def by_reference(logits: Tensor, rows: list[dict[str, Any]]) -> list[int]:
    ids, flags = (torch.empty(len(rows), dtype=torch.int32) for _ in range(2))
    reference.sample(logits, batch_of(rows), ids, flags)
    return ids.tolist()


def test_noise_has_the_reference_s_bits() -> None:
    for seed, position in ((0, 0), (2**64 - 3, 2**33 + 5), (-7, 11)):
        seeds, positions = torch.tensor([seed - 2**64 if seed > 2**63 else seed]), torch.tensor([position])
        out = torch.empty(4096)
        noise_kernel[(1,)](out, seeds, positions, COUNT=4096, enable_fp_fusion=False)
        bits = reference.noise_bits(seed, position, torch.arange(4096))
        assert torch.equal(out, reference.gumbel(bits))


def test_greedy_takes_the_first_of_equals_and_flags_what_has_no_best() -> None:
    logits = randn(6, VOCAB)
    logits[0, [4150, 17, 4097]] = 9.0
    logits[1, 4199] = 9.0
    logits[2, 4100] = math.nan
    logits[3] = -math.inf
    logits[4, 3] = math.inf
    logits[5] = -math.inf
    logits[5, 4198] = -1.0
    assert drawn(logits, batch_of([{}] * 6)) == ([17, 4199, -1, -1, -1, 4198], [0, 0, 1, 1, 1, 0])


@pytest.mark.parametrize("temperature", [0.05, 1.0, 3.0, 100.0])
def test_plain_draws_are_those_of_the_reference(temperature: float) -> None:
    rows = [{"temperature": temperature, "seeds": 1234567890123 + i, "positions": i * 2**33 + i} for i in range(8)]
    check(randn(8, VOCAB) * 3, rows)


@pytest.mark.parametrize(
    "filters",
    [
        {"top_k": 1}, {"top_k": 40}, {"top_k": VOCAB - 1}, {"top_k": VOCAB + 5}, {"top_p": 0.9}, {"top_p": 1e-6},
        {"top_p": 0.999}, {"min_p": 0.1}, {"min_p": 1.0}, {"top_k": 50, "top_p": 0.8, "min_p": 0.01},
    ],
    ids=str,
)  # fmt: skip
def test_filtered_draws_are_those_of_the_reference(filters: dict[str, Any]) -> None:
    check(randn(2, VOCAB) * 2, [{"temperature": 1.0, "seeds": i, "positions": 7, **filters} for i in range(2)])


def test_filtered_draws_with_more_candidates_than_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_CANDIDATES", 64)
    filters: list[dict[str, Any]] = [{"top_k": 100, "top_p": 0.8}, {"top_p": 0.9}, {"top_k": 30}]
    rows = [{"temperature": 1.0, "seeds": i, "positions": 7, **each} for i, each in enumerate(filters)]
    check(randn(3, VOCAB) * 2, rows)


def test_filtered_rows_beside_others_in_rows_of_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, plain and filtered ones, some from few tokens and some from thousands, in parts of 256."""
    monkeypatch.setattr(sampling, "_SPLIT", 256)
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.6, "top_k": 20, "top_p": 0.95}, {}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.5, "min_p": 0.02, "top_p": 0.7}, {"temperature": 1.0, "top_k": 5}, {"temperature": 1.0},
    ]  # fmt: skip
    rows = [{"seeds": 31 * i, "positions": i, **kind} for i, kind in enumerate(kinds)]
    logits = randn(7, 3000) * 4
    logits[-1, 5] = math.nan
    assert check(logits, rows)[-1] == -1


def test_of_scores_that_are_equal_in_two_parts_the_first_token_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part is scored against its own best value first, which rounds differently."""
    monkeypatch.setattr(sampling, "_SPLIT", 64)
    logits = torch.full((6, 256), -30.0)
    rows = [{"temperature": 0.7, "seeds": i, "positions": 3} for i in range(6)]
    inverse, peak = 1.0 / torch.tensor(0.7), torch.tensor(7.3)
    pairs = []
    for i in range(6):
        noise = reference.gumbel(reference.noise_bits(i, 3, torch.arange(256)))
        first, second = 64 + int(noise[64:128].argmax()), 192 + int(noise[192:].argmax())
        logits[i, 128 + int(noise[128:192].argmin())] = peak
        logits[i, first] = peak - 1.1
        wanted = (logits[i, first] - peak) * inverse + noise[first]
        guess = (peak + (wanted - noise[second]) / inverse).view(torch.int32)
        near = (guess + torch.arange(-60, 60, dtype=torch.int32)).view(torch.float32)
        equal = near[((near - peak) * inverse + noise[second] == wanted) & (near < peak)]
        if len(equal):
            logits[i, second] = equal[-1]
            pairs.append((i, first))
    assert len(pairs) >= 3
    ids = check(logits, rows)
    assert [ids[i] for i, _ in pairs] == [first for _, first in pairs]


def test_ties_at_the_border_of_top_k_all_stay_and_those_of_top_p_in_the_order_of_ids() -> None:
    logits = torch.full((1, 300), -5.0)
    logits[0, [250, 30, 120, 7]] = 1.0
    logits[0, 200] = 2.0
    for filters, kept in (
        ({"top_k": 3}, {200, 250, 30, 120, 7}),
        ({"top_p": 0.75}, {200, 7, 30, 120}),
        ({"top_p": 0.49}, {200, 7}),
        ({"top_k": 5, "top_p": 0.5}, {200, 7}),
    ):
        rows = [{"temperature": 1.0, "seeds": 3, "positions": i, **filters} for i in range(16)]
        ids = by_reference(logits.expand(16, -1), rows)
        assert set(ids) == kept
        rows = [rows[ids.index(token)] for token in sorted(kept)]
        check(logits.expand(len(rows), -1).contiguous(), rows)


def test_zeros_of_both_signs_are_equal() -> None:
    logits = torch.tensor([[-0.0, 0.0, -1.0, -0.0]])
    assert drawn(logits, batch_of([{}]))[0] == [0]
    rows = [{"temperature": 1.0, "top_k": 1, "seeds": 1, "positions": i} for i in range(12)]
    assert set(drawn(logits.expand(12, -1).contiguous(), batch_of(rows))[0]) == {0, 1, 3}


def test_bias_masks_and_penalties_on_the_same_ids_come_in_their_order() -> None:
    logits = randn(4, 300)
    everything = {
        "bias": {5: 50.0, 6: -3.0, 200: 49.0},
        "masks": [6, 200, 299],
        "penalties": {5: (3, 0), 7: (0, 1), 200: (1, 1)},
        "repetition": 1.5,
        "frequency": 0.7,
        "presence": 0.3,
    }
    rows = [everything, {}, {**everything, "temperature": 0.8, "seeds": 4}, {"bias": {3: 100.0}, "masks": [3]}]
    check(logits, rows)
    check(logits, [{**row, "temperature": 1.3, "top_p": 0.9, "seeds": 8} for row in rows])


def test_counts_on_the_device_penalise_as_those_of_the_host() -> None:
    logits = randn(3, 300)
    prompt, output = [5, 6, 6, 299], [7, 7, 5, 0]
    rows: list[dict[str, Any]] = [
        {"repetition": 1.7, "frequency": 0.9, "presence": 0.4, "temperature": 0.9, "seeds": i} for i in range(3)
    ]
    on_host = batch_of(rows)
    seen = {i: (output.count(i), int(i in prompt)) for i in {*prompt, *output}}
    on_host = batch_of([{**rows[0], "penalties": seen}, rows[1], {**rows[2], "penalties": {9: (1, 1)}}])
    counts = sampling.DevicePenalties(300, torch.device("cpu"))
    counts.reset_row(3, torch.tensor([1, 2], dtype=torch.int32), torch.tensor([3], dtype=torch.int32))
    counts.reset_row(3, torch.tensor(prompt, dtype=torch.int32), torch.tensor(output[:2], dtype=torch.int32))
    counts.reset_row(20, torch.tensor([9], dtype=torch.int32), torch.tensor([], dtype=torch.int32))
    # Row 3 of the counts gets the rest, one by one; row 20 its first; what is below 0 counts nothing.
    for ids in ((5, 9), (0, -1)):
        counts.add(torch.tensor([3, -1, 20], dtype=torch.int32), torch.tensor([ids[0], 8, ids[1]], dtype=torch.int32))
    on_device = batch_of(rows)
    on_device.counts, on_device.count_rows = counts, torch.tensor([3, -1, 20], dtype=torch.int32)
    assert drawn(logits, on_device) == drawn(logits, on_host)
    for i in range(3):
        adjusted = reference.adjusted_logits(logits[i], on_host, i)
        torch.testing.assert_close(sampling._adjusted(logits, on_device)[i], adjusted)


def test_a_row_alone_draws_what_it_draws_in_company() -> None:
    logits = randn(5, VOCAB)
    rows = [{"temperature": 1.0, "seeds": i, **({"top_p": 0.9} if i % 2 else {})} for i in range(5)]
    whole = drawn(logits, batch_of(rows))[0]
    for i in range(5):
        assert drawn(logits[i : i + 1].contiguous(), batch_of(rows[i : i + 1]))[0] == [whole[i]]


def test_draws_follow_the_distribution() -> None:
    """Chi-square of 300 draws of the reference over 8 tokens, with fixed seeds; these draw the same."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -2.0, 1.5, 0.2])
    expected = logits.softmax(-1) * 300
    rows = [{"temperature": 1.0, "seeds": 99, "positions": i} for i in range(300)]
    ids = by_reference(logits.expand(300, -1), rows)
    check(logits.expand(10, -1).contiguous(), rows[:10])
    found = torch.bincount(torch.tensor(ids), minlength=8)
    assert float(((found - expected) ** 2 / expected).sum()) < 24.3  # 0.1 % of all sets of draws are farther off


@pytest.mark.parametrize("num_words", [5, 10, 12])
def test_forbid_with_too_few_and_too_many_words(num_words: int) -> None:
    generator = torch.Generator().manual_seed(num_words)
    masks = torch.randint(-(2**31), 2**31, (2, num_words), generator=generator, dtype=torch.int64).to(torch.int32)
    logits, rows = randn(4, 300), torch.tensor([3, 1])
    expected = logits.clone()
    reference.forbid(expected, rows, masks)
    sampling.forbid(logits, rows, masks)
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("k", [0, 1, 20])
def test_log_probabilities_and_ranks(k: int) -> None:
    logits = randn(4, 300)
    logits[1, [7, 8, 200]] = 5.0
    logits[2, 4] = -math.inf
    logits[3, :10] = torch.tensor([0.0, -0.0] * 5)
    ids = torch.tensor([5, 8, 4, 3], dtype=torch.int32)
    for mine, wanted in zip(sampling.logprobs(logits, ids, k), reference.logprobs(logits, ids, k), strict=True):
        if mine.dtype == torch.int32:
            assert torch.equal(mine, wanted)
        else:
            torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)
