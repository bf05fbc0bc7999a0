"""The noise of a draw, bit for bit the reference's, and values as keys in the same order."""

from __future__ import annotations

import triton.language as tl

import triton


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
def ordered_keys(x):
    """int32 in the order of the values; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
