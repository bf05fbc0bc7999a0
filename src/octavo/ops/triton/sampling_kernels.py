"""Kernels of sampling: parts of a row in parallel, then a row by itself; no sort, and sums in one order."""

from __future__ import annotations

import triton.language as tl

import triton

_NEVER = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _log_from_parts(f, exponent):
    """ln(1 + f) + exponent * ln(2), as in the reference."""
    square = f * f
    p = 7.0376836292e-2 * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    p = p * f * square
    p = p - exponent * 2.12194440e-4
    p = p - square * 0.5
    return f + p + exponent * 0.693359375


@triton.jit
def _log(x):
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - exponent * 8388608).to(tl.float32, bitcast=True) - 1.0
    return _log_from_parts(f, exponent.to(tl.float32))


@triton.jit
def gumbel(seed, position, ids):
    """float32: the noise of the tokens `ids` int32, bit for bit the reference's (with `enable_fp_fusion=False`)."""
    counters = (ids // 64 * 16 + ids % 16).to(tl.uint32)
    zero = counters * 0
    low = zero + (position & 0xFFFFFFFF).to(tl.uint32)
    high = zero + ((position >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first, second, third, fourth = tl.philox(seed, low, high, counters, zero)
    word = ids // 16 % 4
    bits = tl.where(word < 2, tl.where(word == 0, first, second), tl.where(word == 2, third, fourth))
    near = -_log_from_parts(-(bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.0)
    far = -_log(((0xFFFFFFFF - bits).to(tl.float32) + 0.5) * 2.3283064365386963e-10)
    return -_log(tl.where(bits < 0x40000000, near, far))


@triton.jit
def parts_kernel(
    peaks, peak_ids, scores, score_ids, bad, logits, row_stride, temperature, seeds, positions, vocab,
    SPLIT: tl.constexpr, NUM_SPLITS: tl.constexpr,
):  # fmt: skip
    """One part of SPLIT tokens of a row: its best value, the first token with it, whether there is a NaN; and the best
    score of a draw, (x - best value of the part) / temperature + noise, with the first token that has it."""
    row, part = tl.program_id(0), tl.program_id(1)
    ids = part * SPLIT + tl.arange(0, SPLIT)
    mask = ids < vocab
    x = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=mask, other=float("-inf"))
    is_nan = x != x
    clean = tl.where(is_nan, float("-inf"), x)
    peak = tl.max(clean, 0)
    at = row * NUM_SPLITS + part
    tl.store(peaks + at, peak)
    tl.store(peak_ids + at, tl.min(tl.where(mask & (clean == peak), ids, _NEVER), 0))
    tl.store(bad + at, tl.max(is_nan.to(tl.int32), 0))
    t = tl.load(temperature + row)
    if t > 0:
        base = tl.where(peak == float("-inf"), 0.0, peak)
        noise = gumbel(tl.load(seeds + row), tl.load(positions + row), ids)
        each = (clean - base) * tl.div_rn(1.0, t) + noise
        score = tl.max(each, 0)
        tl.store(scores + at, score)
        tl.store(score_ids + at, tl.min(tl.where(each == score, ids, _NEVER), 0))


@triton.jit
def row_kernel(
    out_ids, out_flags, row_peaks, peaks, peak_ids, scores, score_ids, bad, temperature, top_k, top_p, min_p,
    NUM_SPLITS: tl.constexpr, PARTS: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """A row from its parts: best token, flag, and the draw where nothing is filtered. PARTS: NUM_SPLITS, rounded up."""
    row = tl.program_id(0)
    parts = tl.arange(0, PARTS)
    exists = parts < NUM_SPLITS
    at = row * NUM_SPLITS + parts
    part_peaks = tl.load(peaks + at, mask=exists, other=float("-inf"))
    peak = tl.max(part_peaks, 0)
    best = tl.min(tl.where(exists & (part_peaks == peak), tl.load(peak_ids + at, mask=exists, other=_NEVER), _NEVER), 0)
    has_nan = tl.max(tl.load(bad + at, mask=exists, other=0), 0) > 0
    is_bad = has_nan | (peak == float("inf")) | (peak == float("-inf"))
    tl.store(out_flags + row, is_bad.to(tl.int32))
    tl.store(row_peaks + row, peak)
    t = tl.load(temperature + row)
    tl.store(out_ids + row, tl.where(is_bad, -1, best))
    draws = (t > 0) & (is_bad == 0)
    if FILTERS:
        draws = draws & (tl.load(top_k + row) <= 0) & (tl.load(top_p + row) >= 1.0) & (tl.load(min_p + row) <= 0)
    if draws:
        below = (part_peaks - peak) * tl.div_rn(1.0, t)
        each = tl.load(scores + at, mask=exists, other=float("-inf")) + below
        is_first = exists & (each == tl.max(each, 0))
        tl.store(out_ids + row, tl.min(tl.where(is_first, tl.load(score_ids + at, mask=exists, other=0), _NEVER), 0))


@triton.jit
def _keys(x):
    """int32 in the order of the values; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _load_tile(logits, at, ids, vocab, peak, t, least):
    """Keys, and weights exp((x - peak) / t): 0 for what min_p drops, and beyond the row."""
    mask = ids < vocab
    x = tl.load(logits + at + ids, mask=mask, other=float("-inf"))
    weights = tl.exp((x - peak) / t)
    return _keys(x), tl.where(weights < least, 0.0, weights)


@triton.jit
def _search(logits, at, vocab, peak, t, least, low, high, target, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
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
def filter_kernel(
    out_ids, out_flags, row_peaks, logits, row_stride, temperature, top_k, top_p, min_p, seeds, positions, vocab,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The draw of a row with min_p, top_k or top_p; others end at once."""
    row = tl.program_id(0)
    t, k, p = tl.load(temperature + row), tl.load(top_k + row), tl.load(top_p + row)
    least = tl.load(min_p + row)
    filters = (k > 0) | (p < 1.0) | (least > 0)
    if (t > 0) & (tl.load(out_flags + row) == 0) & filters:
        at = row.to(tl.int64) * row_stride
        peak = tl.load(row_peaks + row)
        # How many weigh anything at all, how much together, and the least of their keys.
        count = tl.zeros([BLOCK], tl.int32)
        lowest = tl.full([BLOCK], 0x7FFFFFFF, tl.int32)
        for n in range(0, vocab, BLOCK):
            keys, weights = _load_tile(logits, at, n + tl.arange(0, BLOCK), vocab, peak, t, least)
            count += (weights > 0).to(tl.int32)
            lowest = tl.minimum(lowest, tl.where(weights > 0, keys, 0x7FFFFFFF))
        low = tl.min(lowest, 0).to(tl.int64)
        high = _keys(peak).to(tl.int64)
        if (k > 0) & (k < tl.sum(count, 0)):
            low = _search(logits, at, vocab, peak, t, least, low, high, k.to(tl.float32), True, BLOCK)
        limit = 1.0e9  # of those at the lowest key, how many stay: they weigh the same, and the first ids win
        if p < 1.0:
            whole = tl.zeros([BLOCK], tl.float32)
            for n in range(0, vocab, BLOCK):
                keys, weights = _load_tile(logits, at, n + tl.arange(0, BLOCK), vocab, peak, t, least)
                whole += tl.where(keys.to(tl.int64) >= low, weights, 0.0)
            share = p * tl.sum(whole, 0)
            low = _search(logits, at, vocab, peak, t, least, low, high, share, False, BLOCK)
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
        seed, position = tl.load(seeds + row), tl.load(positions + row)
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
        tl.store(out_ids + row, winner)


@triton.jit
def _kept(keys, weights, low, limit, ties):
    """What stays of a tile, and how many of those at the lowest key have been seen with it."""
    keys = keys.to(tl.int64)
    is_tie = ((keys == low) & (weights > 0)).to(tl.float32)
    rank = ties + tl.cumsum(is_tie, 0)
    stays = (keys > low) | ((is_tie > 0) & (rank <= limit))
    return stays & (weights > 0), ties + tl.sum(is_tie, 0)


# ------------------------------------------------------------------------------------------------ changes to logits
@triton.jit
def bias_kernel(logits, row_stride, offsets, ids, values, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    end = tl.load(offsets + row + 1)
    for n in range(tl.load(offsets + row), end, BLOCK):
        entries = n + tl.arange(0, BLOCK)
        mask = entries < end
        at = logits + row.to(tl.int64) * row_stride + tl.load(ids + entries, mask=mask, other=0)
        value = tl.load(at, mask=mask, other=0.0) + tl.load(values + entries, mask=mask, other=0.0)
        tl.store(at, value, mask=mask)


@triton.jit
def mask_kernel(logits, row_stride, offsets, ids, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    end = tl.load(offsets + row + 1)
    for n in range(tl.load(offsets + row), end, BLOCK):
        entries = n + tl.arange(0, BLOCK)
        mask = entries < end
        at = logits + row.to(tl.int64) * row_stride + tl.load(ids + entries, mask=mask, other=0)
        tl.store(at, tl.full([BLOCK], float("-inf"), tl.float32), mask=mask)


@triton.jit
def _penalised(value, count, in_prompt, repetition, frequency, presence):
    seen = (count > 0) | (in_prompt != 0)
    value = tl.where(seen, tl.where(value > 0, value / repetition, value * repetition), value)
    return value - frequency * count.to(tl.float32) - tl.where(count > 0, presence, 0.0)


@triton.jit
def penalty_kernel(
    logits, row_stride, offsets, ids, counts, in_prompt, repetition, frequency, presence, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    r, f, p = tl.load(repetition + row), tl.load(frequency + row), tl.load(presence + row)
    end = tl.load(offsets + row + 1)
    for n in range(tl.load(offsets + row), end, BLOCK):
        entries = n + tl.arange(0, BLOCK)
        mask = entries < end
        at = logits + row.to(tl.int64) * row_stride + tl.load(ids + entries, mask=mask, other=0)
        count = tl.load(counts + entries, mask=mask, other=0)
        prompt = tl.load(in_prompt + entries, mask=mask, other=0)
        tl.store(at, _penalised(tl.load(at, mask=mask, other=0.0), count, prompt, r, f, p), mask=mask)


@triton.jit
def counted_penalty_kernel(
    logits, row_stride, rows, counts, in_prompt, repetition, frequency, presence, vocab, BLOCK: tl.constexpr
):  # fmt: skip
    """Rows whose counts lie on the device: all tokens of the vocabulary."""
    row = tl.program_id(0)
    counted = tl.load(rows + row).to(tl.int64)
    if counted >= 0:
        ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        mask = ids < vocab
        at = logits + row.to(tl.int64) * row_stride + ids
        count = tl.load(counts + counted * vocab + ids, mask=mask, other=0)
        prompt = tl.load(in_prompt + counted * vocab + ids, mask=mask, other=0)
        r, f, p = tl.load(repetition + row), tl.load(frequency + row), tl.load(presence + row)
        tl.store(at, _penalised(tl.load(at, mask=mask, other=0.0), count, prompt, r, f, p), mask=mask)


@triton.jit(do_not_specialize=["num_ids"])
def count_kernel(counts, rows, ids, num_ids, vocab, BLOCK: tl.constexpr):
    """counts[rows[i], ids[i]] += 1; a row or an id below 0 counts nothing."""
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = entries < num_ids
    row = tl.load(rows + entries, mask=mask, other=-1).to(tl.int64)
    token = tl.load(ids + entries, mask=mask, other=-1)
    tl.atomic_add(counts + row * vocab + token, 1, mask=mask & (row >= 0) & (token >= 0))


@triton.jit
def forbid_kernel(logits, row_stride, rows, masks, num_words, vocab, BLOCK: tl.constexpr):
    """Tokens whose bit is not set, or that have none, become impossible."""
    m = tl.program_id(0)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(masks + m * num_words + ids // 32, mask=ids // 32 < num_words, other=0)
    is_admitted = ((word >> (ids % 32)) & 1) != 0
    at = logits + tl.load(rows + m) * row_stride + ids
    tl.store(at, tl.full([BLOCK], float("-inf"), tl.float32), mask=(ids < vocab) & (is_admitted == 0))
