"""What samplers do that few requests ask for: their rows are shaped on the host, and drawn from like all others.

All of it is numpy on one row, in float64 and in one thread: what is left of a row depends on nothing but the row, the
parameters and the request's own tokens. `docs/sampling.md` has the order of all steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from octavo.base.params import SamplingParams
from octavo.ops.reference_sampling import noise_bits

#: Beyond the ids of any vocabulary: what XTC's coin has for noise is no token's.
_COIN_ID = 1 << 32
#: Mirostat 1 looks at so many of the likeliest tokens, as its paper does.
_MIROSTAT_TOKENS = 100
_LARGEST_PENALTY = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class ShapedRow:
    """What is left of a row. `logits` float32 [V] are divided by the temperature, -inf for what is never drawn."""

    logits: np.ndarray
    log_total: float  # ln of the sum of e^logits

    def surprise(self, token_id: int) -> float:
        """Bits: -log2 of the token's probability."""
        return (self.log_total - float(self.logits[token_id])) / math.log(2)


def shaped(x: np.ndarray, params: SamplingParams, seed: int, position: int, mu: float) -> ShapedRow:
    """From a row behind bias, masks and penalties, float32 [V] with a finite maximum, to what is drawn from.

    The temperature is above 0. `seed` and `position` are those of the draw, `mu` is Mirostat's, if it chooses.
    """
    values = x.astype(np.float64)
    temperature = dynamic_temperature(values, params.temperature, params.dynatemp_range, params.dynatemp_exponent)
    scaled = (values - values.max()) / temperature
    kept = np.isfinite(values)
    if params.mirostat:
        choose = mirostat_1 if params.mirostat == 1 else mirostat_2
        kept = choose(scaled, kept, mu)
    else:
        if params.top_n_sigma > 0:
            kept = top_n_sigma(values, kept, params.top_n_sigma)
        kept &= np.exp(scaled) >= params.min_p
        kept = _top_k(scaled, kept, params.top_k)
        kept = typical(scaled, kept, params.typical_p)
        kept = _top_p(scaled, kept, params.top_p)
        if params.xtc_probability > 0 and coin(seed, position) < params.xtc_probability:
            kept = without_top_choices(scaled, kept, params.xtc_threshold)
    logits = np.where(kept, scaled, -np.inf).astype(np.float32)
    return ShapedRow(logits, math.log(np.exp(scaled[kept]).sum()))


def dynamic_temperature(values: np.ndarray, temperature: float, reach: float, exponent: float) -> float:
    """Between `temperature` - `reach` and + `reach`: the higher, the less sure the model is, by the entropy of its
    tokens at temperature 1 as a share of the greatest there could be."""
    if reach <= 0:
        return temperature
    low, high = max(0.01, temperature - reach), temperature + reach
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return low
    weights = np.exp(finite - finite.max())
    p = weights / weights.sum()
    entropy = -float(np.sum(p[p > 0] * np.log(p[p > 0])))
    share = min(1.0, entropy / math.log(len(finite)))
    return float(low + (high - low) * share**exponent)


def top_n_sigma(values: np.ndarray, kept: np.ndarray, n: float) -> np.ndarray:
    """Keep what is at most n standard deviations of the kept logits below the best."""
    lowest = values[kept].max() - n * values[kept].std()
    result: np.ndarray = kept & (values >= lowest)
    return result


def typical(scaled: np.ndarray, kept: np.ndarray, mass: float) -> np.ndarray:
    """Keep the tokens whose surprise is nearest to the entropy, until they make up `mass`; of equals the lowest id."""
    if mass >= 1.0:
        return kept
    ids, p = _probabilities(scaled, kept)
    surprise = -np.log(np.maximum(p, 1e-300))
    entropy = float(np.sum(p * surprise))
    return _first_of(ids[np.argsort(np.abs(surprise - entropy), kind="stable")], scaled, kept, mass)


def _top_k(scaled: np.ndarray, kept: np.ndarray, k: int) -> np.ndarray:
    """Keep what equals the k-th best."""
    if not 0 < k < int(kept.sum()):
        return kept
    kth = np.partition(scaled[kept], -k)[-k]
    result: np.ndarray = kept & (scaled >= kth)
    return result


def _top_p(scaled: np.ndarray, kept: np.ndarray, mass: float) -> np.ndarray:
    """Keep the likeliest tokens until they make up `mass`; of equals the lowest id."""
    if mass >= 1.0:
        return kept
    ids = np.flatnonzero(kept)
    return _first_of(ids[np.argsort(-scaled[ids], kind="stable")], scaled, kept, mass)


def _first_of(order: np.ndarray, scaled: np.ndarray, kept: np.ndarray, mass: float) -> np.ndarray:
    """Those of `order` before which there is less than `mass`; the first always."""
    weights = np.exp(scaled[order])
    before = np.cumsum(weights) - weights
    stays = before < mass * weights.sum()
    stays[0] = True
    result = np.zeros_like(kept)
    result[order[stays]] = True
    return result


def without_top_choices(scaled: np.ndarray, kept: np.ndarray, threshold: float) -> np.ndarray:
    """XTC: of the tokens that have at least `threshold` only the least likely stays (of equals the highest id)."""
    ids, p = _probabilities(scaled, kept)
    top = ids[p >= threshold]
    if len(top) < 2:
        return kept
    result = kept.copy()
    result[top] = False
    result[top[np.flatnonzero(scaled[top] == scaled[top].min())[-1]]] = True
    return result


def coin(seed: int, position: int) -> float:
    """A number in (0, 1) of a draw's own, independent of its tokens' noise."""
    return (int(noise_bits(seed, position, torch.tensor([_COIN_ID]))[0]) + 0.5) / 2**32


def mirostat_1(scaled: np.ndarray, kept: np.ndarray, mu: float) -> np.ndarray:
    """Keep the k best, k from an estimate of the exponent of Zipf's law that the likeliest tokens follow."""
    ids, p = _probabilities(scaled, kept)
    best = np.sort(p)[::-1][:_MIROSTAT_TOKENS]
    best = best[best > 0]
    if len(best) < 2:
        return kept
    ranks = np.arange(1, len(best))
    t, b = np.log((ranks + 1) / ranks), np.log(best[:-1] / best[1:])
    s = float(np.sum(t * b) / np.sum(t * t))
    epsilon = s - 1.0
    if s <= 0:
        return kept
    # (epsilon 2^mu / (1 - N^-epsilon))^(1/s) in logarithms, so that nothing overflows; its limit where epsilon is 0.
    share = math.log(len(ids)) if abs(epsilon) < 1e-9 else -math.expm1(-epsilon * math.log(len(ids))) / epsilon
    log_k = (mu * math.log(2) - math.log(share)) / s
    return _top_k(scaled, kept, max(1, int(math.exp(min(log_k, 40.0)))))


def mirostat_2(scaled: np.ndarray, kept: np.ndarray, mu: float) -> np.ndarray:
    """Keep the tokens whose surprise is at most `mu` bits, and the likeliest (of equals the lowest id)."""
    ids, p = _probabilities(scaled, kept)
    stays = p >= 2.0**-mu
    stays[int(np.argmax(p))] = True
    result = np.zeros_like(kept)
    result[ids[stays]] = True
    return result


def _probabilities(scaled: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ids that are kept, int64 [K], and their probabilities, float64 [K]."""
    ids = np.flatnonzero(kept)
    weights = np.exp(scaled[ids])
    return ids, weights / weights.sum()


def dry_penalties(
    tokens: np.ndarray, multiplier: float, base: float, allowed_length: int, breakers: Sequence[Sequence[int]]
) -> dict[int, float]:
    """DRY: token id -> how much its logit is lowered, because it would go on with what stood in `tokens` before.

    For each earlier place at which the last tokens stood already, as many as `length`, the token behind that place
    gets multiplier * base ** (length - allowed_length), from `allowed_length` on; of several places the longest counts.
    No repetition reaches over one of `breakers` (sequences of token ids), and a token that is one by itself goes free.
    """
    num_tokens = len(tokens)
    longest = _tokens_behind_breaker(tokens, breakers)
    # Beyond it the penalty does not grow: it is the greatest that a float32 holds, or the base is 1.
    most = math.log(_LARGEST_PENALTY) / math.log(base) if base > 1.0 else 0.0
    longest = min(longest, allowed_length + math.ceil(most), num_tokens - 1)
    if num_tokens < 2 or longest < max(1, allowed_length):
        return {}
    places = np.flatnonzero(tokens[:-1] == tokens[-1])  # at each stands the end of what may be repeated
    lengths = np.ones(len(places), np.int64)
    going = np.arange(len(places))
    for length in range(1, longest):
        going = going[places[going] >= length]
        going = going[tokens[places[going] - length] == tokens[-1 - length]]
        if len(going) == 0:
            break
        lengths[going] = length + 1
    free = {sequence[0] for sequence in breakers if len(sequence) == 1}
    found: dict[int, int] = {}
    for place, length in zip(places.tolist(), lengths.tolist(), strict=True):
        token_id = int(tokens[place + 1])
        if length >= allowed_length and token_id not in free:
            found[token_id] = max(length, found.get(token_id, 0))
    return {
        token_id: min(_LARGEST_PENALTY, multiplier * base ** min(length - allowed_length, most))
        for token_id, length in found.items()
    }


def _tokens_behind_breaker(tokens: np.ndarray, breakers: Sequence[Sequence[int]]) -> int:
    """How many tokens there are behind the last breaker; all of them, if there is none."""
    singles = [sequence[0] for sequence in breakers if len(sequence) == 1]
    at = np.flatnonzero(np.isin(tokens, singles))
    end = int(at[-1]) + 1 if len(at) else 0
    for sequence in breakers:
        if len(sequence) > 1:
            heads = np.flatnonzero(tokens == sequence[0])
            for head in heads[::-1].tolist():
                if head + len(sequence) <= end:
                    break
                if tokens[head : head + len(sequence)].tolist() == list(sequence):
                    end = head + len(sequence)
                    break
    return len(tokens) - end
