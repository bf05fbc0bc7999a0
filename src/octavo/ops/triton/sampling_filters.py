"""Kernels of draws with min_p, top_k or top_p. No sort: limits are searched for by halves, in the order of the values.

Two passes read a row, on all processors. The first (`sampling_draws.parts_kernel`) leaves the best value of each few
tokens, from which follows a value that nothing below can reach into what stays (`lowest_candidate`). The second
(`gather_kernel`) collects the others, the candidates, hundreds as a rule, and one program draws from them. Weights are
summed as integers in units of 2**-40 of the best token's: so a sum has no order, and neither the number of rows nor the
processors' turns change it.
"""

from __future__ import annotations

import triton.language as tl

import triton
from octavo.ops.triton.launching import jit
from octavo.ops.triton.sampling_noise import gumbel, ordered_keys

_NEVER = tl.constexpr(0x7FFFFFFF)
_INFINITELY_LOW = tl.constexpr(-2139095041)  # the key of -inf
_UNITS = tl.constexpr(1099511627776.0)


@triton.jit
def _weight(scaled):
    """int64: exp(scaled), scaled <= 0, in units of 2**-40."""
    return (tl.exp(scaled) * _UNITS).to(tl.int64)


@triton.jit
def _lowest(keys, amounts, low, high, target):
    """The lowest key in [low, high] whose betters' amounts are less than `target` together; those of `high` are."""
    low, high = low.to(tl.int64), high.to(tl.int64)
    while low < high:
        middle = (low + high) >> 1
        is_low_enough = tl.sum(tl.where(keys > middle.to(tl.int32), amounts, 0), 0) < target
        high = tl.where(is_low_enough, middle, high)
        low = tl.where(is_low_enough, low, middle + 1)
    return high.to(tl.int32)


@triton.jit
def _below(peak, t, share):
    """A value below which every weight is less than `share`, whatever the rounding."""
    return peak + t * tl.log(share) - 0.001 * (1.0 + tl.abs(peak))


@triton.jit
def lowest_candidate(best_of_groups, peak, total, t, k, p, least, vocab):
    """int32: no token with a lower key stays in a row of this peak. `total`: of all weights, in float32."""
    keys = ordered_keys(best_of_groups)
    high = ordered_keys(peak)
    bound = tl.full([], _INFINITELY_LOW, tl.int32)
    if k > 0:
        # The k-th best token is not below the k-th best of the groups.
        bound = _lowest(keys, (keys > bound).to(tl.int32), bound, high, k)
    elif (p < 1.0) & (least <= 0):
        # Where the best of the groups weigh p already, and where all that is lower weighs less than 1 - p.
        weights = tl.exp((best_of_groups - peak) * tl.div_rn(1.0, t))
        bound = _lowest(keys, weights, bound, high, p * total * 1.0001)
        bound = tl.maximum(bound, ordered_keys(_below(peak, t, 0.99 * (1.0 - p) * total / vocab)))
    if least > 0:
        bound = tl.maximum(bound, ordered_keys(_below(peak, t, least)))
    return tl.minimum(bound, high)


@jit
def gather_kernel(
    values, ids_of, counts, totals, bounds, row_peaks, logits, row_stride, temperature, top_k, top_p, min_p, vocab,
    SPLIT: tl.constexpr, MOST: tl.constexpr,
):  # fmt: skip
    """The candidates of a part of SPLIT tokens, to wherever there is room among the row's MOST: their order does not
    matter. `counts` counts those without room too; `totals` gets the weight of all tokens where top_p is alone."""
    row, part = tl.program_id(0), tl.program_id(1)
    bound = tl.load(bounds + row)
    if bound != _NEVER:
        ids = part * SPLIT + tl.arange(0, SPLIT)
        x = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=ids < vocab, other=float("-inf"))
        is_taken = (ordered_keys(x) >= bound) & (x > float("-inf"))
        count = tl.sum(is_taken.to(tl.int32), 0)
        if count > 0:
            first = tl.atomic_add(counts + row, count)
            place = first + tl.cumsum(is_taken.to(tl.int32), 0) - 1
            at, has_room = row.to(tl.int64) * MOST + place, is_taken & (place < MOST)
            tl.store(values + at, x, mask=has_room)
            tl.store(ids_of + at, ids, mask=has_room)
        if (tl.load(top_k + row) <= 0) & (tl.load(min_p + row) <= 0) & (tl.load(top_p + row) < 1.0):
            scaled = (x - tl.load(row_peaks + row)) * tl.div_rn(1.0, tl.load(temperature + row))
            tl.atomic_add(totals + row, tl.sum(_weight(scaled), 0))


@jit
def pick_kernel(
    out_ids, values, ids_of, counts, totals, bounds, row_peaks, logits, row_stride, temperature, top_k, top_p, min_p,
    seeds, positions, vocab,
    MOST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The draw of a row with min_p, top_k or top_p; others end at once."""
    row = tl.program_id(0)
    if tl.load(bounds + row) != _NEVER:
        t, k, p, least = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        peak, count = tl.load(row_peaks + row), tl.load(counts + row)
        seed, position = tl.load(seeds + row), tl.load(positions + row)
        if count <= MOST:
            at = row.to(tl.int64) * MOST
            total = tl.load(totals + row)
            winner = _draw_candidates(
                values + at, ids_of + at, count, total, peak, t, k, p, least, seed, position, vocab, MOST
            )
        else:
            at = row.to(tl.int64) * row_stride
            winner = _draw_in_passes(logits, at, vocab, peak, t, k, p, least, seed, position, BLOCK)
        tl.store(out_ids + row, winner)


@triton.jit
def _draw_candidates(values, ids_of, count, total, peak, t, k, p, least, seed, position, vocab, MOST: tl.constexpr):
    places = tl.arange(0, MOST)
    x = tl.load(values + places, mask=places < count, other=float("-inf"))
    ids = tl.load(ids_of + places, mask=places < count, other=0)
    scaled = (x - peak) * tl.div_rn(1.0, t)
    weights, keys = tl.exp(scaled), ordered_keys(x)
    stays = (weights > 0) & (weights >= least)
    low, high = tl.min(tl.where(stays, keys, _NEVER), 0), ordered_keys(peak)
    if (k > 0) & (k < tl.sum(stays.to(tl.int32), 0)):
        low = _lowest(keys, stays.to(tl.int32), low, high, k)
        stays = stays & (keys >= low)
    if p < 1.0:
        amounts = tl.where(stays, _weight(scaled), 0)
        if (k > 0) | (least > 0):
            total = tl.sum(amounts, 0)
        share = p.to(tl.float64) * total.to(tl.float64)
        target = share.to(tl.int64)
        target = tl.maximum(target + (target.to(tl.float64) < share).to(tl.int64), 1)  # the best always stays
        low = _lowest(keys, amounts, low, high, target)
        # Of those at the lowest key, which weigh the same, the first ids stay, until the share is reached.
        is_tie = stays & (keys == low)
        num_ties, each = tl.sum(is_tie.to(tl.int32), 0), tl.max(tl.where(is_tie, amounts, 0), 0)
        missing = target - tl.sum(tl.where(keys > low, amounts, 0), 0)
        stays = stays & (keys >= low)
        if (each > 0) & (missing <= (num_ties - 1) * each):
            num_left = ((missing + each - 1) // each).to(tl.int32)
            # The highest id with fewer ties before it: with keys that fall as the ids rise.
            last = -_lowest(-ids, is_tie.to(tl.int32), 1 - vocab, tl.full([], 0, tl.int32), num_left)
            stays = stays & ((keys > low) | (ids <= last))
    scores = tl.where(stays, scaled + gumbel(seed, position, ids), float("-inf"))
    return tl.min(tl.where(stays & (scores == tl.max(scores, 0)), ids, _NEVER), 0)


@triton.jit
def _load_tile(logits, at, ids, vocab, peak, t, least):
    """Keys, and weights exp((x - peak) / t): 0 for what min_p drops, and beyond the row."""
    mask = ids < vocab
    x = tl.load(logits + at + ids, mask=mask, other=float("-inf"))
    weights = tl.exp((x - peak) / t)
    return ordered_keys(x), tl.where(weights < least, 0.0, weights)


@triton.jit
def _search_row(logits, at, vocab, peak, t, least, low, high, target, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The lowest key whose betters (greater keys) together stay below `target`: in number, or in weight.

    16 places at once cut what is left of the keys to a sixteenth with each pass over the row. Keys are int64 here.
    """
    places = tl.arange(0, 16)
    while low < high:
        step = (high - low + 15) // 16
        pivots = low + places * step
        betters = tl.zeros([16], tl.float32)
        for n in range(0, vocab, BLOCK):
            keys, weights = _load_tile(logits, at, n + tl.arange(0, BLOCK), vocab, peak, t, least)
            if COUNTS:
                weights = (weights > 0).to(tl.float32)
            is_better = keys[None, :].to(tl.int64) > pivots[:, None]
            betters += tl.sum(tl.where(is_better, weights[None, :], 0.0), 1)
        # `betters` falls with the key: the first place that is low enough bounds the answer from above.
        first = tl.min(tl.where((betters < target) & (pivots < high), places, 16), 0)
        new_high = tl.where(first == 16, high, low + first * step)
        low = tl.where(first == 0, new_high, tl.minimum(low + (first - 1) * step + 1, new_high))
        high = new_high
    return high


@triton.jit
def _draw_in_passes(logits, at, vocab, peak, t, k, p, least, seed, position, BLOCK: tl.constexpr):
    """The draw of a row with more candidates than are held at once, in a dozen passes over it. Its weights are summed
    in float32."""
    # How many weigh anything at all, how much together, and the least of their keys.
    count = tl.zeros([BLOCK], tl.int32)
    lowest = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
    for n in range(0, vocab, BLOCK):
        keys, weights = _load_tile(logits, at, n + tl.arange(0, BLOCK), vocab, peak, t, least)
        count += (weights > 0).to(tl.int32)
        lowest = tl.minimum(lowest, tl.where(weights > 0, keys, 0x7FFFFFFF))
    low = tl.min(lowest, 0).to(tl.int64)
    high = ordered_keys(peak).to(tl.int64)
    if (k > 0) & (k < tl.sum(count, 0)):
        low = _search_row(logits, at, vocab, peak, t, least, low, high, k.to(tl.float32), True, BLOCK)
    limit = 1.0e9  # of those at the lowest key, how many stay: they weigh the same, and the first ids win
    if p < 1.0:
        whole = tl.zeros([BLOCK], tl.float32)
        for n in range(0, vocab, BLOCK):
            keys, weights = _load_tile(logits, at, n + tl.arange(0, BLOCK), vocab, peak, t, least)
            whole += tl.where(keys.to(tl.int64) >= low, weights, 0.0)
        share = p * tl.sum(whole, 0)
        low = _search_row(logits, at, vocab, peak, t, least, low, high, share, False, BLOCK)
        betters = tl.zeros([BLOCK], tl.float32)
        each = tl.zeros([BLOCK], tl.float32)
        for n in range(0, vocab, BLOCK):
            keys, weights = _load_tile(logits, at, n + tl.arange(0, BLOCK), vocab, peak, t, least)
            betters += tl.where(keys.to(tl.int64) > low, weights, 0.0)
            each = tl.maximum(each, tl.where(keys.to(tl.int64) == low, weights, 0.0))
        limit = tl.maximum(tl.ceil((share - tl.sum(betters, 0)) / tl.max(each, 0)), 1.0)
    best = float("-inf")
    winner = 0
    ties = 0.0
    for n in range(0, vocab, BLOCK):
        ids = n + tl.arange(0, BLOCK)
        keys, weights = _load_tile(logits, at, ids, vocab, peak, t, least)
        kept, ties = _kept(keys, weights, low, limit, ties)
        x = tl.load(logits + at + ids, mask=ids < vocab, other=float("-inf"))
        scores = (x - peak) * tl.div_rn(1.0, t) + gumbel(seed, position, ids)
        scores = tl.where(kept, scores, float("-inf"))
        score = tl.max(scores, 0)
        if score > best:
            best = score
            winner = tl.min(tl.where(kept & (scores == score), ids, _NEVER), 0)
    return winner


@triton.jit
def _kept(keys, weights, low, limit, ties):
    """What stays of a tile, and how many of those at the lowest key have been seen with it."""
    keys = keys.to(tl.int64)
    is_tie = ((keys == low) & (weights > 0)).to(tl.float32)
    rank = ties + tl.cumsum(is_tie, 0)
    stays = (keys > low) | ((is_tie > 0) & (rank <= limit))
    return stays & (weights > 0), ties + tl.sum(is_tie, 0)
