"""What is sampled is distributed as the documented pipeline says: a chi-square test through the whole engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.harness import Engine, request
from octavo.wire.messages import AddRequest

PROMPT = [1234]
NUM_DRAWS = 1200


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine(smollm2_gguf)


@pytest.fixture(scope="module")
def logprobs(engine: Engine) -> np.ndarray:
    """float64 [V]: the model's own distribution behind the prompt."""
    vocab_size = engine.info.vocab_size
    (entry,) = engine.run([request(1, PROMPT, max_tokens=1, logprobs=vocab_size)]).replies[1].logprobs
    values = np.empty(vocab_size)
    values[entry.top_ids] = entry.top_logprobs
    assert np.exp(values).sum() == pytest.approx(1.0, abs=1e-4)
    return values


def expected(
    logprobs: np.ndarray, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> np.ndarray:
    """Probabilities: temperature, then min_p, top_k, top_p, each of what the one before left."""
    p = np.exp((logprobs - logprobs.max()) / temperature)
    p[p < min_p] = 0.0
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0.0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0.0
    return p / p.sum()


def chi_square(counts: Counter[int], p: np.ndarray) -> tuple[float, int]:
    """The statistic and its degrees of freedom; what is expected less than eight times is one class."""
    total = counts.total()
    common = np.flatnonzero(p * total >= 8)
    rest = 1.0 - p[common].sum()
    statistic = sum((counts[int(i)] - p[i] * total) ** 2 / (p[i] * total) for i in common)
    others = total - sum(counts[int(i)] for i in common)
    if rest * total >= 8:
        statistic += (others - rest * total) ** 2 / (rest * total)
        return float(statistic), len(common)
    assert others <= 30
    return float(statistic), len(common) - 1


def critical(degrees: int) -> float:
    """The value that one run in a thousand exceeds (Wilson and Hilferty). The seeds are fixed: so does no run later."""
    z, part = 3.09, 2.0 / (9.0 * degrees)
    return float(degrees * (1.0 - part + z * part**0.5) ** 3)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 1.0},
        {"temperature": 0.7, "top_k": 12},
        {"temperature": 1.3, "top_p": 0.9, "min_p": 0.01, "top_k": 40},
    ],
)
def test_draws_follow_the_documented_distribution(engine: Engine, logprobs: np.ndarray, params: dict[str, Any]) -> None:
    p = expected(logprobs, **params)
    draws = [request(i, PROMPT, max_tokens=1, logprobs=None, seed=i, **params) for i in range(NUM_DRAWS)]
    counts = drawn(engine, draws)
    assert all(p[token_id] > 0 for token_id in counts)
    statistic, degrees = chi_square(counts, p)
    assert degrees >= 4
    assert statistic < critical(degrees)


def test_a_wrong_temperature_would_be_noticed(engine: Engine, logprobs: np.ndarray) -> None:
    draws = [request(i, PROMPT, max_tokens=1, logprobs=None, seed=i, temperature=1.0) for i in range(NUM_DRAWS)]
    statistic, degrees = chi_square(drawn(engine, draws), expected(logprobs, 0.8))
    assert statistic > critical(degrees)


def drawn(engine: Engine, draws: list[AddRequest]) -> Counter[int]:
    return Counter(reply.token_ids[0] for reply in engine.run(draws).replies.values())
