"""Kernels that change logits before a draw: bias, masks, penalties; and counts on the device."""

from __future__ import annotations

import triton.language as tl

import triton
from octavo.ops.triton.launching import jit


@jit
def bias_kernel(logits, row_stride, offsets, ids, values, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    end = tl.load(offsets + row + 1)
    for n in range(tl.load(offsets + row), end, BLOCK):
        entries = n + tl.arange(0, BLOCK)
        mask = entries < end
        at = logits + row.to(tl.int64) * row_stride + tl.load(ids + entries, mask=mask, other=0)
        value = tl.load(at, mask=mask, other=0.0) + tl.load(values + entries, mask=mask, other=0.0)
        tl.store(at, value, mask=mask)


@jit
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


@jit
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


@jit
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


@jit(do_not_specialize=["num_ids"])
def count_kernel(counts, rows, ids, num_ids, vocab, BLOCK: tl.constexpr):
    """counts[rows[i], ids[i]] += 1; a row or an id below 0 counts nothing."""
    entries = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = entries < num_ids
    row = tl.load(rows + entries, mask=mask, other=-1).to(tl.int64)
    token = tl.load(ids + entries, mask=mask, other=-1)
    tl.atomic_add(counts + row * vocab + token, 1, mask=mask & (row >= 0) & (token >= 0))


@jit
def forbid_kernel(logits, row_stride, rows, masks, num_words, vocab, BLOCK: tl.constexpr):
    """Tokens whose bit is not set, or that have none, become impossible."""
    m = tl.program_id(0)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(masks + m * num_words + ids // 32, mask=ids // 32 < num_words, other=0)
    is_admitted = ((word >> (ids % 32)) & 1) != 0
    at = logits + tl.load(rows + m) * row_stride + ids
    tl.store(at, tl.full([BLOCK], float("-inf"), tl.float32), mask=(ids < vocab) & (is_admitted == 0))
