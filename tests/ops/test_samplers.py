"""The samplers that shape rows on the host, against what each says, written out token by token."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from octavo.base.params import SamplingParams
from octavo.base.repetition import RepetitionDetection
from octavo.ops import samplers


def _row(size: int = 40, seed: int = 0, spread: float = 2.0) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(seed).normal(0.0, spread, size).astype(np.float32)
    return values


def _left(x: np.ndarray, seed: int = 1, position: int = 0, mu: float = 0.0, **fields: float) -> dict[int, float]:
    """id -> probability of what is left of a row."""
    row = samplers.shaped(x, SamplingParams(**fields), seed, position, mu)  # type: ignore[arg-type]
    weights = np.exp(row.logits.astype(np.float64))
    return {i: float(w / weights.sum()) for i, w in enumerate(weights) if w > 0}


def _softmax(x: np.ndarray, temperature: float = 1.0) -> list[float]:
    weights = [math.exp((float(v) - float(x.max())) / temperature) for v in x]
    return [w / sum(weights) for w in weights]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mass", [0.2, 0.6, 0.95])
def test_typical_keeps_what_is_as_surprising_as_the_whole(seed: int, mass: float) -> None:
    x = _row(seed=seed)
    p = _softmax(x, 0.8)
    entropy = -sum(v * math.log(v) for v in p)
    order = sorted(range(len(p)), key=lambda i: (abs(-math.log(p[i]) - entropy), i))
    kept: list[int] = []
    for i in order:
        kept.append(i)
        if sum(p[j] for j in kept) >= mass:
            break
    assert set(_left(x, temperature=0.8, typical_p=mass)) == set(kept)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0])
def test_top_n_sigma_counts_deviations_of_logits_that_are_not_masked(n: float) -> None:
    x = _row()
    x[[3, 7]] = -np.inf
    finite = [float(v) for v in x if math.isfinite(v)]
    mean = sum(finite) / len(finite)
    sigma = math.sqrt(sum((v - mean) ** 2 for v in finite) / len(finite))
    wanted = {i for i, v in enumerate(x) if v >= max(finite) - n * sigma}
    assert set(_left(x, top_n_sigma=n)) == wanted
    assert set(_left(x, top_n_sigma=n, temperature=2.0)) == wanted, "whatever the temperature"


@pytest.mark.parametrize("exponent", [0.5, 1.0, 3.0])
def test_a_dynamic_temperature_grows_with_the_entropy(exponent: float) -> None:
    for spread in (0.1, 2.0, 20.0):
        x = _row(spread=spread)
        p = _softmax(x)
        share = -sum(v * math.log(v) for v in p if v > 0) / math.log(len(x))
        temperature = 0.4 + (1.6 - 0.4) * share**exponent
        left = _left(x, temperature=1.0, dynatemp_range=0.6, dynatemp_exponent=exponent)
        wanted = _softmax(x, temperature)
        assert all(left.get(i, 0.0) == pytest.approx(v, rel=1e-4, abs=1e-30) for i, v in enumerate(wanted))


def test_xtc_leaves_the_least_likely_of_the_likely_and_throws_a_coin_of_its_own() -> None:
    x = np.log(np.array([0.4, 0.25, 0.2, 0.1, 0.05], np.float32))
    assert set(_left(x, xtc_probability=1.0, xtc_threshold=0.15)) == {2, 3, 4}
    assert set(_left(x, xtc_probability=1.0, xtc_threshold=0.3)) == {0, 1, 2, 3, 4}, "one likely token stays"
    thrown = [set(_left(x, seed=9, position=i, xtc_probability=0.3, xtc_threshold=0.15)) for i in range(1000)]
    assert 240 < sum(0 not in left for left in thrown) < 360
    assert thrown == [set(_left(x, seed=9, position=i, xtc_probability=0.3, xtc_threshold=0.15)) for i in range(1000)]


def test_filters_follow_each_other_in_the_documented_order() -> None:
    """min_p, top_k, typical_p, top_p, XTC: each sees what the one before left."""
    x = np.log(np.array([0.3, 0.3, 0.2, 0.1, 0.06, 0.04], np.float32))
    assert set(_left(x, min_p=0.3, top_k=3, top_p=0.7)) == {0, 1}
    # 0.3, 0.3 and 0.2 are left of top_k: 0.375, 0.375, 0.25; the surprise of the first two is nearest.
    assert set(_left(x, top_k=3, typical_p=0.5)) == {0, 1}
    assert set(_left(x, top_k=3, top_p=0.99, xtc_probability=1.0, xtc_threshold=0.1)) == {2}


@pytest.mark.parametrize("mu", [0.5, 3.0, 8.0])
def test_mirostat_2_cuts_at_its_surprise(mu: float) -> None:
    x = _row()
    p = _softmax(x, 0.9)
    wanted = {i for i, v in enumerate(p) if -math.log2(v) <= mu} or {max(range(len(p)), key=p.__getitem__)}
    assert set(_left(x, temperature=0.9, mirostat=2, mu=mu, top_k=1)) == wanted, "in place of all filters"


@pytest.mark.parametrize("mu", [1.0, 4.0, 10.0])
def test_mirostat_1_estimates_how_many_tokens_have_its_surprise(mu: float) -> None:
    x = _row(300, spread=3.0)
    p = sorted(_softmax(x), reverse=True)
    t = [math.log((i + 2) / (i + 1)) for i in range(99)]
    b = [math.log(p[i] / p[i + 1]) for i in range(99)]
    s = sum(u * v for u, v in zip(t, b, strict=True)) / sum(u * u for u in t)
    k = ((s - 1) * 2**mu / (1 - len(p) ** -(s - 1))) ** (1 / s)
    assert len(_left(x, mirostat=1, mu=mu)) == min(300, max(1, int(k)))


def test_the_surprise_of_a_token_is_that_among_those_left() -> None:
    x = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
    row = samplers.shaped(x, SamplingParams(mirostat=2), 0, 0, 2.5)
    assert row.surprise(1) == pytest.approx(-math.log2(0.25 / 0.75))


def _dry(tokens: list[int], allowed: int, breakers: list[tuple[int, ...]]) -> dict[int, int]:
    """Token -> the longest repetition that it would go on with, place by place."""
    limit = 0
    for length in range(1, len(tokens)):
        suffix = tokens[-length:]
        ends = [tuple(suffix[i : i + len(b)]) == b for b in breakers for i in range(length - len(b) + 1)]
        if any(ends):
            break
        limit = length
    found: dict[int, int] = {}
    for end in range(1, len(tokens)):
        length = 0
        while length < min(limit, end) and tokens[end - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= allowed and (tokens[end],) not in breakers:
            found[tokens[end]] = max(found.get(tokens[end], 0), length)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_dry_finds_the_longest_repetition_behind_the_last_breaker(seed: int) -> None:
    rng = random.Random(seed)
    tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 40))]
    breakers: list[tuple[int, ...]] = rng.choice([[], [(2,)], [(1, 1)], [(2,), (0, 1, 0)]])
    wanted = _dry(tokens, 2, breakers)
    found = samplers.dry_penalties(np.array(tokens, np.int32), 0.8, 1.75, 2, breakers)
    assert found == {token: pytest.approx(0.8 * 1.75 ** (length - 2)) for token, length in wanted.items()}


def test_dry_of_a_long_repetition_stays_a_number() -> None:
    found = samplers.dry_penalties(np.array([5] * 5000, np.int32), 2.0, 1.75, 2, [])
    assert math.isfinite(np.float32(found[5]))
    assert samplers.dry_penalties(np.array([5] * 500, np.int32), 2.0, 1.0, 2, []) == {5: 2.0}


@pytest.mark.parametrize(
    ("tokens", "fields", "found"),
    [
        ([1, 2, 3, 2, 3, 2, 3], {"max_pattern_size": 2, "min_count": 3}, True),
        ([1, 2, 3, 2, 3], {"max_pattern_size": 2, "min_count": 3}, False),
        ([4, 4, 4], {"max_pattern_size": 5, "min_count": 3}, True),
        ([4, 4, 4], {"max_pattern_size": 5, "min_pattern_size": 2, "min_count": 2}, False),
        ([4, 4, 4, 4], {"max_pattern_size": 5, "min_pattern_size": 2, "min_count": 2}, True),
        ([1, 2, 1, 2], {"max_pattern_size": 1, "min_count": 2}, False),
        ([4, 4, 4], {"max_pattern_size": 0}, False),
        ([], {"max_pattern_size": 3}, False),
    ],
)
def test_a_repetition_is_a_pattern_that_stands_often_enough_at_the_end(
    tokens: list[int], fields: dict[str, int], found: bool
) -> None:
    detection = RepetitionDetection(**fields)
    assert detection.found([9, 9, 9, *tokens], len(tokens)) is found
