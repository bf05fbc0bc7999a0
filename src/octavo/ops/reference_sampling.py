"""What sampling means, in plain torch and Python: the distribution of each row, the random draw, the logprobs.

The draw is a race of the tokens that the filters leave: the one with the greatest sum of logit / temperature and Gumbel
noise wins (of equals the lowest id), which happens to each with its probability. A token's noise is a function of
(seed, position, token id) alone: two models that draw at the same place with the same seed meet the same noise, so that
they agree as often as their distributions are close, and leaving a token out changes nothing for the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.ops.sampling_batch import SamplingBatch

_MASK32 = 0xFFFFFFFF
#: Flag of a row that has a NaN, or no finite best logit, and so has no distribution.
FLAG_OK, FLAG_BAD_LOGITS = 0, 1
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip


def noise_bits(seed: int, position: int, ids: Tensor) -> Tensor:
    """int64 [N]: 32 random bits of each of `ids` int64 [N], from the 64-bit `seed` and `position`.

    Philox4x32-10 (Salmon et al. 2011) with the key `seed` and the counter (position, c, 0): 64 tokens in a row share
    16 counters c, and token 16 w + i of them has word w of counter i.
    """
    counters = ids // 64 * 16 + ids % 16
    x = [torch.full_like(ids, position & _MASK32), torch.full_like(ids, position >> 32 & _MASK32), counters]
    x.append(torch.zeros_like(ids))
    key = [seed & _MASK32, seed >> 32 & _MASK32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]  # the 64 bits of a product wrap into the sign, and are right
        x = [b >> 32 & _MASK32 ^ x[1] ^ key[0], b & _MASK32, a >> 32 & _MASK32 ^ x[3] ^ key[1], a & _MASK32]
        key = [(key[0] + 0x9E3779B9) & _MASK32, (key[1] + 0xBB67AE85) & _MASK32]
    return torch.stack(x).gather(0, (ids // 16 % 4)[None])[0]


def gumbel(bits: Tensor) -> Tensor:
    """float32 [N]: -ln(-ln(1 - v)) of v = (bits + 1/2) / 2**32 in (0, 1), `bits` int64 [N].

    Every product and every sum is rounded to float32 by itself, in the order that is written here: so the noise has the
    same bits on every processor. Close to 0, where the winners come from, v keeps a float's precision.
    """
    near = -_log_from_parts(-(bits.float() + 0.5) * 2.0**-32, torch.zeros(()))
    far = -_log(((_MASK32 - bits).float() + 0.5) * 2.0**-32)
    return -_log(torch.where(bits < 1 << 30, near, far))


def _log(x: Tensor) -> Tensor:
    """ln(x) of normal float32 numbers > 0, within 2 ulp."""
    bits = x.view(torch.int32)
    exponent = (bits - 0x3F3504F3) >> 23  # of x / sqrt(1/2)
    return _log_from_parts((bits - exponent * (1 << 23)).view(torch.float32) - 1.0, exponent.float())


def _log_from_parts(f: Tensor, exponent: Tensor) -> Tensor:
    """ln(1 + f) + exponent * ln(2) for 1 + f in [sqrt(1/2), sqrt(2)): the polynomial of Cephes' logf."""
    square = f * f
    p = torch.full_like(f, _LOG[0])
    for coefficient in _LOG[1:]:
        p = p * f + coefficient
    p = p * f * square
    p = p - exponent * 2.12194440e-4
    p = p - square * 0.5
    return f + p + exponent * 0.693359375


def adjusted_logits(logits: Tensor, batch: SamplingBatch, row: int) -> Tensor:
    """float32 [V]: the row after bias, masks and penalties, before the temperature. `logits` [V] is not changed."""
    x = logits.clone()
    if batch.bias.active:
        entries = _entries(batch.bias.offsets, row)
        x[batch.bias.ids[entries].long()] += batch.bias.values[entries]
    if batch.masks.active:
        x[batch.masks.ids[_entries(batch.masks.offsets, row)].long()] = -math.inf
    if batch.penalties.active:
        entries = _entries(batch.penalties.offsets, row)
        ids, counts = batch.penalties.ids[entries].long(), batch.penalties.counts[entries]
        seen = (counts > 0) | (batch.penalties.in_prompt[entries] != 0)
        value = x[ids]
        repetition = batch.repetition[row]
        value = torch.where(seen, torch.where(value > 0, value / repetition, value * repetition), value)
        value = value - batch.frequency[row] * counts
        x[ids] = value - batch.presence[row] * (counts > 0)
    return x


def distribution(adjusted: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """float64 [V]: probabilities of the tokens at temperature > 0. `adjusted` [V] has a finite maximum.

    min_p drops what is less likely than min_p times the best; top_k keeps what equals the k-th best; top_p drops,
    from the least likely on (ties: the highest id first), while the dropped sum stays <= 1 - p.
    """
    x = adjusted.double()
    weights = torch.exp((x - x.max()) / temperature)
    weights[weights < min_p] = 0.0
    kept = weights > 0
    if 0 < top_k < int(kept.sum()):
        kept &= x >= torch.where(kept, x, -math.inf).topk(top_k).values[-1]
    weights = torch.where(kept, weights, 0.0)
    if top_p < 1.0:
        # Descending, ties by id: a token stays while the likelier ones do not yet make up p.
        order = torch.sort(torch.where(kept, x, -math.inf), descending=True, stable=True).indices
        before = weights[order].cumsum(0) - weights[order]
        drop = before >= top_p * weights.sum()
        drop[0] = False
        weights[order[drop]] = 0.0
    return weights / weights.sum()


def processed_logits(logits: Tensor, batch: SamplingBatch, row: int) -> Tensor:
    """float32 [V]: what `sample` draws from, as logits: -inf for what it never draws. `logits` [V] is not changed.

    A greedy row has neither temperature nor filters.
    """
    x = adjusted_logits(logits, batch, row)
    temperature = float(batch.temperature[row])
    if temperature == 0.0:
        return x
    top_k, top_p, min_p = int(batch.top_k[row]), float(batch.top_p[row]), float(batch.min_p[row])
    if top_k <= 0 and top_p >= 1.0 and min_p <= 0.0:
        return x / temperature  # nothing is filtered, though float64 may call what is least likely impossible
    return torch.where(distribution(x, temperature, top_k, top_p, min_p) > 0, x / temperature, -math.inf)


def forbid(logits: Tensor, rows: Tensor, masks: Tensor) -> None:
    """Set the logits of tokens that are not admitted to -inf, in place.

    logits float32 [S, V]; rows int64 [M], each once; masks int32 [M, W], of logits[rows[m]]: bit i % 32 of word i // 32
    admits token i; what is beyond the last word is not admitted. W words may be too many, or too few, for V.
    """
    vocab, num_bits = logits.shape[1], 32 * masks.shape[1]
    bits = (masks[:, :, None] >> torch.arange(32, dtype=torch.int32)) & 1
    admitted = torch.zeros(len(masks), max(vocab, num_bits), dtype=torch.bool)
    admitted[:, :num_bits] = bits.flatten(1) != 0
    logits[rows] = logits[rows].masked_fill(~admitted[:, :vocab], -math.inf)


def sample(logits: Tensor, batch: SamplingBatch, out_ids: Tensor, out_flags: Tensor) -> None:
    """Draw one token a row. logits float32 [S, V] are left unchanged; out_ids, out_flags int32 [S].

    A row with a NaN, or whose best logit is not finite, gets the flag FLAG_BAD_LOGITS and the id -1.
    """
    for row in range(batch.num_rows):
        x = adjusted_logits(logits[row], batch, row)
        bad = bool(x.isnan().any()) or not bool(x.max().isfinite())
        out_flags[row] = FLAG_BAD_LOGITS if bad else FLAG_OK
        out_ids[row] = -1 if bad else _draw(x, batch, row)


def _draw(x: Tensor, batch: SamplingBatch, row: int) -> int:
    temperature = float(batch.temperature[row])
    if temperature == 0.0:
        return int((x == x.max()).nonzero()[0])
    top_k, top_p, min_p = int(batch.top_k[row]), float(batch.top_p[row]), float(batch.min_p[row])
    ids = distribution(x, temperature, top_k, top_p, min_p).nonzero()[:, 0]
    noise = gumbel(noise_bits(int(batch.seeds[row]), int(batch.positions[row]), ids))
    scores = (x[ids] - x.max()) * (1.0 / batch.temperature[row]) + noise
    return int(ids[scores == scores.max()][0])


def logprobs(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-softmax of the raw rows: of ids[i], its rank, and the k best.

    logits float32 [S, V]; ids int32 [S]. Returns logprob float32 [S], rank int32 [S] (1: the best; ties: the lower
    id first), top_ids int32 [S, k], top_logprobs float32 [S, k] in falling order.
    """
    values = logits.double().log_softmax(-1)
    chosen = logits.gather(1, ids.long()[:, None])
    token = torch.arange(logits.shape[1])[None, :]
    ahead = (logits > chosen) | ((logits == chosen) & (token < ids[:, None]))
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :k]
    return (
        values.gather(1, ids.long()[:, None])[:, 0].float(),
        (ahead.sum(-1) + 1).to(torch.int32),
        order.to(torch.int32),
        values.gather(1, order).float(),
    )


def _entries(offsets: Tensor, row: int) -> slice:
    return slice(int(offsets[row]), int(offsets[row + 1]))
