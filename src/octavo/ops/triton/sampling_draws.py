"""Kernels of every draw: parts of a row in parallel, then the row from its parts."""

from __future__ import annotations

import triton.language as tl

import triton
from octavo.ops.triton.launching import jit
from octavo.ops.triton.sampling_filters import lowest_candidate
from octavo.ops.triton.sampling_noise import gumbel

_NEVER = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _is_filtered(row, top_k, top_p, min_p):
    return (tl.load(top_k + row) > 0) | (tl.load(top_p + row) < 1.0) | (tl.load(min_p + row) > 0)


@jit
def parts_kernel(
    peaks, peak_ids, scores, score_ids, bad, maxima, masses, logits, row_stride, temperature, top_k, top_p, min_p,
    seeds, positions, vocab,
    SPLIT: tl.constexpr, NUM_SPLITS: tl.constexpr, GROUP: tl.constexpr, FILTERS: tl.constexpr,
):  # fmt: skip
    """One part of SPLIT tokens of a row: its best value, the first token with it, whether there is a NaN. Of a row that
    is drawn from all tokens the best score, (x - best value of the part) / temperature + noise; of one that is filtered
    the best value of each GROUP tokens, and the weight of all, exp((x - best value of the part) / temperature)."""
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
    is_filtered = False
    if FILTERS:
        is_filtered = _is_filtered(row, top_k, top_p, min_p)
    if t > 0:
        scaled = (clean - tl.where(peak == float("-inf"), 0.0, peak)) * tl.div_rn(1.0, t)
        if is_filtered:
            groups = tl.arange(0, SPLIT // GROUP)
            best = tl.max(tl.reshape(clean, [SPLIT // GROUP, GROUP]), 1)
            tl.store(maxima + at.to(tl.int64) * (SPLIT // GROUP) + groups, best)
            tl.store(masses + at, tl.sum(tl.exp(scaled), 0))
        else:
            each = scaled + gumbel(tl.load(seeds + row), tl.load(positions + row), ids)
            score = tl.max(each, 0)
            tl.store(scores + at, score)
            tl.store(score_ids + at, tl.min(tl.where(each == score, ids, _NEVER), 0))


@jit
def row_kernel(
    out_ids, out_flags, row_peaks, bounds, counts, totals, peaks, peak_ids, scores, score_ids, bad, maxima, masses,
    logits, row_stride, temperature, top_k, top_p, min_p, seeds, positions, vocab,
    SPLIT: tl.constexpr, NUM_SPLITS: tl.constexpr, PARTS: tl.constexpr, GROUP: tl.constexpr, GROUPS: tl.constexpr,
    FILTERS: tl.constexpr,
):  # fmt: skip
    """A row from its parts: best token, flag, and the draw where nothing is filtered; elsewhere the key below which no
    token can stay, in `bounds` (_NEVER: the row has been drawn), and zeros for what `gather_kernel` adds up. PARTS and
    GROUPS: NUM_SPLITS and the number of groups, rounded up."""
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
    draws = (t > 0) & (is_bad == 0)
    if FILTERS:
        draws = draws & (_is_filtered(row, top_k, top_p, min_p) == 0)
    winner = tl.where(is_bad, -1, best)
    if draws:
        inverse = tl.div_rn(1.0, t)
        each = tl.load(scores + at, mask=exists, other=float("-inf")) + (part_peaks - peak) * inverse
        # The parts were scored against their own best values. Those that rounding may have kept from the first place,
        # nearly always one, are scored again as the reference does: what competes is within 27 of 0, so that all
        # roundings together are less than this.
        is_close = exists & (each >= tl.max(each, 0) - 6.1e-5)
        seed, position = tl.load(seeds + row), tl.load(positions + row)
        best_score = float("-inf")
        part = tl.min(tl.where(is_close, parts, _NEVER), 0)
        while part < NUM_SPLITS:
            ids = part * SPLIT + tl.arange(0, SPLIT)
            x = tl.load(logits + row.to(tl.int64) * row_stride + ids, mask=ids < vocab, other=float("-inf"))
            exact = (x - peak) * inverse + gumbel(seed, position, ids)
            score = tl.max(exact, 0)
            if score > best_score:
                best_score = score
                winner = tl.min(tl.where(exact == score, ids, _NEVER), 0)
            part = tl.min(tl.where(is_close & (parts > part), parts, _NEVER), 0)
    tl.store(out_ids + row, winner)
    if FILTERS:
        is_filtered = (t > 0) & (is_bad == 0) & _is_filtered(row, top_k, top_p, min_p)
        tl.store(counts + row, 0)
        tl.store(totals + row, tl.zeros([], tl.int64))
        bound = _NEVER
        if is_filtered:
            k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
            weighs = tl.load(masses + at, mask=exists, other=0.0) * tl.exp((part_peaks - peak) * tl.div_rn(1.0, t))
            NUM_GROUPS: tl.constexpr = NUM_SPLITS * (SPLIT // GROUP)
            groups = tl.arange(0, GROUPS)
            places = row.to(tl.int64) * NUM_GROUPS + groups
            best_of_groups = tl.load(maxima + places, mask=groups < NUM_GROUPS, other=float("-inf"))
            bound = lowest_candidate(best_of_groups, peak, tl.sum(weighs, 0), t, k, p, least, vocab)
        tl.store(bounds + row, bound)
