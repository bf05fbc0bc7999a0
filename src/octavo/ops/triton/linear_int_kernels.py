"""Kernels for weights of 4 and 8 bits with scales in groups along K, integers or the values of a table: products with
few rows, with more, and the weights' rows as floats.

Of 8 bits a row is its bytes in order. Of 4 bits a row is cut into tiles of TILE values, each half as many bytes: the
low nibbles are the tile's first half and the high ones its second, so that what a load brings is two operands of
products, and nothing moves between threads. UNIT consecutive values have one scale; scales and mins lie by groups,
[K / GROUP, N].
"""

from __future__ import annotations

import functools
from typing import Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.linear_dense import store_rows, weight_rows

#: Tables of float8, as bytes of float32: how many digits and what bias of the exponent they have.
FLOAT8S: Final = {
    torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy().tobytes(): digits_and_bias
    for dtype, digits_and_bias in ((torch.float8_e4m3fn, (3, 7)), (torch.float8_e5m2, (2, 15)))
}
#: Two floats in a register whose low bits are an integer: 128 + u in bfloat16, 1024 + u in float16; and -128, 1, ...
_MAGIC: Final = {torch.bfloat16: (0x4300_4300, 128), torch.float16: (0x6400_6400, 1024)}


def _pair(value: float, dtype: torch.dtype) -> str:
    """Two of `value` in a register, as PTX writes it."""
    bits = int(torch.tensor(value, dtype=dtype).view(torch.int16)) & 0xFFFF
    return f"0x{bits << 16 | bits:08X}"


@functools.cache
def unpacking_table(table: bytes, dtype: torch.dtype) -> str:
    """The same of values that stand in a table, float32: of 16, which are rounded to `dtype`, or of a float8."""
    one = _pair(1.0, dtype)
    values = torch.frombuffer(bytearray(table), dtype=torch.float32)
    if len(values) == 16:
        return f"{{ .reg .b32 a<8>; {_looked_up(values, dtype)} mov.b32 $4, {one}; mov.b32 $5, {one}; }}"
    # Sign, exponent and digits to where a wider float has its lowest ones, and the exponent to its place: exact.
    digits, bias = FLOAT8S[table]
    wide_digits, wide_bias = {torch.bfloat16: (7, 127), torch.float16: (10, 15)}[dtype]
    name = {torch.bfloat16: "bf16x2", torch.float16: "f16x2"}[dtype]
    shift, factor = 8 - (wide_digits - digits), _pair(2.0 ** (wide_bias - bias), dtype)
    moved = " ".join(
        f"""prmt.b32 a0, $6, 0, {selector}; and.b32 a1, a0, 0x7F007F00; shr.u32 a1, a1, {shift};
            lop3.b32 a0, a0, 0x80008000, a1, 0xEA; fma.rn.{name} ${i}, a0, factor, minus;"""
        for i, selector in enumerate(("0x1404", "0x3424"))
    )
    start = f"{{ .reg .b32 a<2>, factor, minus; mov.b32 factor, {factor}; mov.b32 minus, 0x80008000;"  # minus zero
    return f"{start} {moved} mov.b32 $2, $0; mov.b32 $3, $1; mov.b32 $4, {one}; mov.b32 $5, {one}; }}"


def _looked_up(values: Tensor, dtype: torch.dtype) -> str:
    """PTX from the nibbles of $6 to values of a table of 16: the low ones to $0 and $1, the high ones to $2 and $3.

    A permutation takes four bytes out of eight at once. So the low and the high bytes of the values are looked up
    apart, each among the first eight and the last, of which bit 3 of the nibbles chooses.
    """
    halves = values.to(dtype).view(torch.int16).numpy().view("u1").reshape(16, 2)
    low, high = (
        [f"0x{int.from_bytes(each.tobytes(), 'little'):08X}" for each in half.reshape(4, 4)] for half in halves.T
    )
    parts = []
    for shift, first, second in ((0, "$0", "$1"), (4, "$2", "$3")):
        parts.append(f"""
            shr.u32 a0, $6, {shift}; and.b32 a0, a0, 0x0F0F0F0F; shr.u32 a1, a0, 4; lop3.b32 a0, a0, a1, 0, 0xFC;
            prmt.b32 a0, a0, 0, 0x4420; shr.u32 a1, a0, 3; and.b32 a1, a1, 0x1111; and.b32 a0, a0, 0x7777;
            mov.b32 a2, 0xFF00; prmt.b32 a1, a2, 0, a1;""")
        for target, table in (("a6", low), ("a7", high)):
            parts.append(f"""
            mov.b32 a2, {table[0]}; mov.b32 a3, {table[1]}; prmt.b32 a2, a2, a3, a0;
            mov.b32 a4, {table[2]}; mov.b32 a5, {table[3]}; prmt.b32 a4, a4, a5, a0;
            lop3.b32 {target}, a2, a4, a1, 0xD8;""")
        parts.append(f" prmt.b32 {first}, a6, a7, 0x5140; prmt.b32 {second}, a6, a7, 0x7362;")
    return "".join(parts)


@functools.cache
def unpacking(bits: int, zero: int, dtype: torch.dtype) -> str:
    """PTX that makes u - zero of four packed bytes, floats of `dtype`, exact; and as many ones.

    An integer becomes a float by being put under the exponent of a float whose last bit counts one (Kim et al.,
    arXiv 2211.10017); the conversion instructions would take four to eight times as long. Compilers do not find it.
    """
    name = {torch.bfloat16: "bf16x2", torch.float16: "f16x2"}[dtype]
    magic, base = _MAGIC[dtype]
    less, one = _pair(-base - zero, dtype), _pair(1.0, dtype)
    start = f"{{ .reg .b32 a<4>, one, less; mov.b32 one, {one}; mov.b32 less, {less};"
    if bits == 4:
        return f"""{start}
            prmt.b32 a0, $6, 0, 0x4140; prmt.b32 a1, $6, 0, 0x4342;
            shr.u32 a2, a0, 4; shr.u32 a3, a1, 4;
            lop3.b32 a0, a0, 0x000F000F, 0x{magic:08X}, 0xEA; lop3.b32 a1, a1, 0x000F000F, 0x{magic:08X}, 0xEA;
            lop3.b32 a2, a2, 0x000F000F, 0x{magic:08X}, 0xEA; lop3.b32 a3, a3, 0x000F000F, 0x{magic:08X}, 0xEA;
            fma.rn.{name} $0, a0, one, less; fma.rn.{name} $1, a1, one, less;
            fma.rn.{name} $2, a2, one, less; fma.rn.{name} $3, a3, one, less;
            mov.b32 $4, one; mov.b32 $5, one; }}"""
    if dtype == torch.float16:
        return f"""{start}
            prmt.b32 a0, $6, 0x{magic:08X}, 0x5150; prmt.b32 a1, $6, 0x{magic:08X}, 0x5352;
            fma.rn.{name} $0, a0, one, less; fma.rn.{name} $1, a1, one, less;
            mov.b32 $2, $0; mov.b32 $3, $1; mov.b32 $4, one; mov.b32 $5, one; }}"""
    # bfloat16 has too few digits for 128 + a byte: through float32, 2**23 + u.
    less = f"0f{int(torch.tensor(-float(2**23 + zero)).view(torch.int32)) & 0xFFFF_FFFF:08X}"
    return f"""{{ .reg .b32 a<4>;
        prmt.b32 a0, $6, 0x4B000000, 0x7650; prmt.b32 a1, $6, 0x4B000000, 0x7651;
        prmt.b32 a2, $6, 0x4B000000, 0x7652; prmt.b32 a3, $6, 0x4B000000, 0x7653;
        add.f32 a0, a0, {less}; add.f32 a1, a1, {less}; add.f32 a2, a2, {less}; add.f32 a3, a3, {less};
        cvt.rn.bf16x2.f32 $0, a1, a0; cvt.rn.bf16x2.f32 $1, a3, a2;
        mov.b32 $2, $0; mov.b32 $3, $1; mov.b32 $4, {one}; mov.b32 $5, {one}; }}"""


#: Registers of that PTX: two of low nibbles, two of high ones (of bytes: the same again), two of ones; and the packed
#: bytes. No result may share a register with what is still to be read.
_REGISTERS = tl.constexpr("=&r,=&r,=&r,=&r,=&r,=&r,r")
_BF16 = tl.constexpr((tl.bfloat16, tl.bfloat16, tl.bfloat16))
_FP16 = tl.constexpr((tl.float16, tl.float16, tl.float16))


@triton.jit
def unpacked(packed, table, BITS: tl.constexpr, ZERO: tl.constexpr, UNPACK: tl.constexpr, TYPE: tl.constexpr):
    """u - ZERO of packed bytes, of low nibbles and of high ones or of 8 bits twice the same, and ones; as TYPE. With a
    table, float32, its values in place of u - ZERO.

    UNPACK: PTX, or "" for operations that are slower but that the interpreter has too. Ones come from here because
    they must have the layout of the others, in which x is in shared memory.
    """
    if UNPACK == "":
        if BITS == 4:
            low, high = packed & 0xF, packed >> 4
        else:
            low, high = packed, packed
        if table is not None:
            low = tl.load(table + low.to(tl.int32)).to(TYPE)
            high = tl.load(table + high.to(tl.int32)).to(TYPE)
        else:
            low = (low.to(tl.float32) - ZERO).to(TYPE)
            high = (high.to(tl.float32) - ZERO).to(TYPE)
        ones = (packed.to(tl.float32) * 0.0 + 1.0).to(TYPE)
    elif TYPE.is_bf16():
        low, high, ones = tl.inline_asm_elementwise(UNPACK, _REGISTERS, [packed], _BF16, True, 4)
    else:
        low, high, ones = tl.inline_asm_elementwise(UNPACK, _REGISTERS, [packed], _FP16, True, 4)
    return low, high, ones


@triton.jit
def _scales_at(scales, k, row, row_mask, K, stride, GROUP: tl.constexpr):
    """float32 [len(k), len(row)]: those of the groups that k are in; zeros outside the matrix."""
    at = scales + ((k // GROUP)[:, None] * stride + row[None, :])
    return tl.load(at, mask=(k < K)[:, None] & row_mask[None, :], other=0.0).to(tl.float32)


@triton.jit
def _scaled(u, scales, mins, HAS_MINS: tl.constexpr, TYPE: tl.constexpr):
    """u [R, C] times scales [R, S], plus mins, of C / S columns each, in float32 and then as TYPE."""
    R: tl.constexpr = u.shape[0]
    C: tl.constexpr = u.shape[1]
    S: tl.constexpr = scales.shape[1]
    value = u.to(tl.float32)
    if S == 1:
        value = value * scales
        if HAS_MINS:
            value += mins
        return value.to(TYPE)
    value = tl.reshape(value, (R, S, C // S)) * scales[:, :, None]
    if HAS_MINS:
        value += mins[:, :, None]
    return tl.reshape(value, (R, C)).to(TYPE)


@triton.jit
def _scaled_slices(u, scales, mins, HAS_MINS: tl.constexpr, TYPE: tl.constexpr):
    """u [SLICES, R, C] times scales [SLICES * S, R], plus mins, of C / S columns each."""
    SLICES: tl.constexpr = u.shape[0]
    R: tl.constexpr = u.shape[1]
    C: tl.constexpr = u.shape[2]
    S: tl.constexpr = scales.shape[0] // SLICES
    by_row = tl.permute(tl.reshape(scales, (SLICES, S, R)), (0, 2, 1))
    value = tl.reshape(u.to(tl.float32), (SLICES, R, S, C // S)) * by_row[:, :, :, None]
    if HAS_MINS:
        value += tl.permute(tl.reshape(mins, (SLICES, S, R)), (0, 2, 1))[:, :, :, None]
    return tl.reshape(value, (SLICES, R, C)).to(TYPE)


@triton.jit
def _weighed(squares, x, weight):
    """squares + x * x in float32, and x times the norm's weight."""
    plain = x.to(tl.float32)
    return squares + plain * plain, (plain * weight).to(x.dtype)


@jit(do_not_specialize=["M"], chained=True)
def int_few_rows_kernel(  # noqa: C901 - the branches are of what is known when it is compiled
    out, x, w, scales, mins, table, bias, norm, eps, M, N, K, stride_out, stride_x, stride_w, stride_s,
    BITS: tl.constexpr, ZERO: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    SLICES: tl.constexpr, SLICE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, EVEN_K: tl.constexpr,
    HAS_MINS: tl.constexpr, HAS_BIAS: tl.constexpr, UNPACK: tl.constexpr, ACT: tl.constexpr, ADDS: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """out [M, N] = x [M, K] @ w.T, M <= 16; with ACT, w has 2 N rows and out = act(x @ w[:N].T) * (x @ w[N:].T).

    norm float32 [K]: the norm of x with these weights is in its place. ADDS: to what out has.

    As in `linear_dense` the warps of a block share K. Where a slice has one scale (UNIT is SLICE), its products, exact
    integers times x, are summed before the scale is applied: one multiplication for a slice and not for each weight;
    and so are the mins, to the sum of x, which is a product with ones. Scales are fetched a step ahead, as they would
    be waited for.
    """
    wait_turn(CHAINED)
    TYPE: tl.constexpr = x.dtype.element_ty
    HALF: tl.constexpr = TILE // 2 if BITS == 4 else TILE
    BYTES: tl.constexpr = SLICES * SLICE  # of a row, in a step
    STEP: tl.constexpr = 2 * BYTES if BITS == 4 else BYTES
    #: Of 4 bits: whether the halves of a tile have scales of their own.
    TWO_GROUPS: tl.constexpr = BITS == 4 and GROUP % TILE != 0
    row, row_mask = weight_rows(N, BLOCK_N, ACT)
    m = tl.arange(0, BLOCK_M)
    byte = tl.arange(0, SLICES) * SLICE
    k_x = byte // HALF * TILE + byte % HALF
    inner = tl.arange(0, SLICE)
    w_at = w + (row[None, :, None].to(tl.int64) * stride_w + byte[:, None, None] + inner[None, None, :])
    x_at = x + (m[None, None, :] * stride_x + k_x[:, None, None] + inner[None, :, None])
    acc = tl.zeros((SLICES, BLOCK_N, BLOCK_M), tl.float32)
    if norm is not None:
        norm_at = norm + (k_x[:, None, None] + inner[None, :, None])
        squares = tl.zeros((SLICES, SLICE, BLOCK_M), tl.float32)
    scaled_byte = tl.arange(0, BYTES // UNIT) * UNIT
    k_s = scaled_byte // HALF * TILE + scaled_byte % HALF
    s_low = _scales_at(scales, k_s, row, row_mask, K, stride_s, GROUP)
    s_high, m_low, m_high = s_low, s_low, s_low
    if TWO_GROUPS:
        s_high = _scales_at(scales, k_s + HALF, row, row_mask, K, stride_s, GROUP)
    if HAS_MINS:
        m_low = _scales_at(mins, k_s, row, row_mask, K, stride_s, GROUP)
        if TWO_GROUPS:
            m_high = _scales_at(mins, k_s + HALF, row, row_mask, K, stride_s, GROUP)
    for k in range(0, K, STEP):
        w_mask, x_mask = row_mask[None, :, None], (m < M)[None, None, :]
        if not EVEN_K:
            # K is a whole number of tiles: both halves end together.
            in_k = (k + k_x < K)[:, None, None]
            w_mask, x_mask = w_mask & in_k, x_mask & in_k
        packed = tl.load(w_at, mask=w_mask, other=0)
        low, high, ones = unpacked(packed, table, BITS, ZERO, UNPACK, TYPE)
        x_low = tl.load(x_at, mask=x_mask, other=0.0)
        x_high = x_low
        if BITS == 4:
            x_high = tl.load(x_at + HALF, mask=x_mask, other=0.0)
        if norm is not None:
            in_norm = (k + k_x < K)[:, None, None]
            squares, x_low = _weighed(squares, x_low, tl.load(norm_at, mask=in_norm, other=0.0))
            if BITS == 4:
                squares, x_high = _weighed(squares, x_high, tl.load(norm_at + HALF, mask=in_norm, other=0.0))
            norm_at += STEP
        if UNIT != SLICE:
            acc = tl.dot(_scaled_slices(low, s_low, m_low, HAS_MINS, TYPE), x_low, acc)
            if BITS == 4:
                acc = tl.dot(_scaled_slices(high, s_high, m_high, HAS_MINS, TYPE), x_high, acc)
        else:
            part = tl.dot(low, x_low)
            if TWO_GROUPS:
                acc += tl.dot(high, x_high) * s_high[:, :, None]
            elif BITS == 4:
                part = tl.dot(high, x_high, part)
            acc += part * s_low[:, :, None]
            if HAS_MINS:
                x_sum = tl.dot(ones, x_low)
                if TWO_GROUPS:
                    acc += tl.dot(ones, x_high) * m_high[:, :, None]
                elif BITS == 4:
                    x_sum = tl.dot(ones, x_high, x_sum)
                acc += x_sum * m_low[:, :, None]
        following = k + STEP + k_s
        s_low = _scales_at(scales, following, row, row_mask, K, stride_s, GROUP)
        if TWO_GROUPS:
            s_high = _scales_at(scales, following + HALF, row, row_mask, K, stride_s, GROUP)
        if HAS_MINS:
            m_low = _scales_at(mins, following, row, row_mask, K, stride_s, GROUP)
            if TWO_GROUPS:
                m_high = _scales_at(mins, following + HALF, row, row_mask, K, stride_s, GROUP)
        w_at += BYTES
        x_at += STEP
    total = tl.sum(acc, 0)
    if norm is not None:
        total = total * tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / K + eps)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row_mask, other=0.0)[:, None]
    store_rows(out, total, M, N, stride_out, BLOCK_N, BLOCK_M, ACT, ADDS)


@triton.jit
def tile_products(
    w_at, x_at, scales, mins, table, n, n_mask, m_mask, first, last, K, stride_s,
    BITS: tl.constexpr, ZERO: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_MINS: tl.constexpr, UNPACK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """float32 [BLOCK_N, BLOCK_M], of the columns first .. last: rows n of a weight, of which the first half tile is at
    w_at, times rows of x, of which the same columns are at x_at.

    Weights become floats of x's type in registers, from where tensor cores take them as their first operand; where a
    tile of a row has one scale, it is applied to the tile's products. Each tile's products are one chain, and the
    tiles' sums are added in order, for all BLOCK_N and BLOCK_M. (One chain for all of K is slower: the compiler waits
    for each product.)
    """
    HALF: tl.constexpr = TILE // 2
    ONE_SCALE: tl.constexpr = GROUP % TILE == 0 and not HAS_MINS
    # Two scales for a half at least, if need be equal ones: with one the compiler takes weights through shared memory.
    SCALES: tl.constexpr = 1 if ONE_SCALE else HALF // UNIT if HALF // UNIT > 2 else 2
    k_s = first + tl.arange(0, SCALES) * (HALF // SCALES)
    acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    s_low = _scales_at(scales, k_s, n, n_mask, K, stride_s, GROUP)
    s_high, m_low, m_high = s_low, s_low, s_low
    if not ONE_SCALE:
        s_high = _scales_at(scales, k_s + HALF, n, n_mask, K, stride_s, GROUP)
    if HAS_MINS:
        m_low = _scales_at(mins, k_s, n, n_mask, K, stride_s, GROUP)
        m_high = _scales_at(mins, k_s + HALF, n, n_mask, K, stride_s, GROUP)
    for k in range(first, last, TILE):
        low, high, _ = unpacked(tl.load(w_at, mask=n_mask[:, None], other=0), table, BITS, ZERO, UNPACK, TYPE)
        if BITS == 8:
            high, _, _ = unpacked(tl.load(w_at + HALF, mask=n_mask[:, None], other=0), table, BITS, ZERO, UNPACK, TYPE)
        x_low = tl.load(x_at, mask=m_mask[:, None], other=0.0)
        x_high = tl.load(x_at + HALF, mask=m_mask[:, None], other=0.0)
        if not ONE_SCALE:
            low = _scaled(low, s_low.T, m_low.T, HAS_MINS, TYPE)
            high = _scaled(high, s_high.T, m_high.T, HAS_MINS, TYPE)
        part = tl.dot(high, x_high.T, tl.dot(low, x_low.T))
        acc += part * s_low.T if ONE_SCALE else part
        following = k - first + TILE + k_s
        s_low = _scales_at(scales, following, n, n_mask, K, stride_s, GROUP)
        if not ONE_SCALE:
            s_high = _scales_at(scales, following + HALF, n, n_mask, K, stride_s, GROUP)
        if HAS_MINS:
            m_low = _scales_at(mins, following, n, n_mask, K, stride_s, GROUP)
            m_high = _scales_at(mins, following + HALF, n, n_mask, K, stride_s, GROUP)
        w_at += HALF if BITS == 4 else TILE
        x_at += TILE
    return acc


@jit(do_not_specialize=["M"])
def int_tiles_kernel(
    out, x, w, scales, mins, table, bias, M, N, K, stride_out, stride_x, stride_w, stride_s,
    BITS: tl.constexpr, ZERO: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_MINS: tl.constexpr, HAS_BIAS: tl.constexpr,
    UNPACK: tl.constexpr,
):  # fmt: skip
    """out [M, N] = x [M, K] @ w.T for any M.

    SPLITS programs share K, each for a part; out is then float32 [SPLITS, M, N] and takes their sums. Without SPLITS a
    row's bits depend on that row of x alone: see `tile_products`.
    """
    tiles_m = tl.cdiv(M, BLOCK_M)
    n = tl.program_id(0) // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n_mask, m_mask = n < N, m < M
    first, last = 0, K
    if SPLITS > 1:
        first = tl.program_id(1) * tl.cdiv(K // TILE, SPLITS) * TILE
        last = min(K, first + tl.cdiv(K // TILE, SPLITS) * TILE)
        out += tl.program_id(1).to(tl.int64) * M * stride_out
    inner = tl.arange(0, TILE // 2)
    w_at = w + (n[:, None].to(tl.int64) * stride_w + inner[None, :]) + (first // 2 if BITS == 4 else first)
    x_at = x + (m[:, None].to(tl.int64) * stride_x + inner[None, :]) + first
    acc = tile_products(
        w_at, x_at, scales, mins, table, n, n_mask, m_mask, first, last, K, stride_s,
        BITS, ZERO, TILE, UNIT, GROUP, BLOCK_N, BLOCK_M, HAS_MINS, UNPACK, x.dtype.element_ty,
    )  # fmt: skip
    if HAS_BIAS:
        acc += tl.load(bias + n, mask=n_mask, other=0.0)[:, None]
    out_at = out + (m[None, :].to(tl.int64) * stride_out + n[:, None])
    tl.store(out_at, acc.to(out.dtype.element_ty), mask=n_mask[:, None] & m_mask[None, :])


@jit
def sum_kernel(
    out, parts, bias, N, stride_out, size, SPLITS: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """out [M, N] = the sum of parts, float32 [SPLITS, M, N], in order, + bias. A program takes BLOCK of a row."""
    m = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = n < N
    total = tl.load(parts + m * N + n, mask=mask, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(parts + split * size + m * N + n, mask=mask, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=mask, other=0.0)
    tl.store(out + m * stride_out + n, total.to(out.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["first", "T"])
def int_rows_kernel(
    out, ids, w, scales, mins, table, first, T, K, factor, stride_out, stride_w, stride_s,
    BITS: tl.constexpr, ZERO: tl.constexpr, TILE: tl.constexpr, UNIT: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr, HAS_IDS: tl.constexpr, HAS_MINS: tl.constexpr,
):  # fmt: skip
    """out [T, K] = factor * the rows `ids` of the weight, or, without ids, those from `first` on. A program takes one
    tile of BLOCK_T rows."""
    HALF: tl.constexpr = TILE // 2 if BITS == 4 else TILE
    tile = tl.program_id(1)
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    mask = t < T
    row = first + t
    if HAS_IDS:
        row = tl.load(ids + t, mask=mask, other=0)
    inner = tl.arange(0, HALF)
    packed = tl.load(w + (row[:, None].to(tl.int64) * stride_w + tile * HALF + inner[None, :]), mask=mask[:, None])
    low, high, _ = unpacked(packed, table, BITS, ZERO, "", tl.float32)
    k = tile * TILE + tl.arange(0, HALF // UNIT) * UNIT
    out_at = out + (t[:, None].to(tl.int64) * stride_out + tile * TILE + inner[None, :])
    TYPE: tl.constexpr = out.dtype.element_ty
    s_low = _scales_at(scales, k, row, mask, K, stride_s, GROUP).T * factor
    m_low = s_low
    if HAS_MINS:
        m_low = _scales_at(mins, k, row, mask, K, stride_s, GROUP).T * factor
    tl.store(out_at, _scaled(low, s_low, m_low, HAS_MINS, TYPE), mask=mask[:, None])
    if BITS == 4:
        s_high = _scales_at(scales, k + HALF, row, mask, K, stride_s, GROUP).T * factor
        m_high = s_high
        if HAS_MINS:
            m_high = _scales_at(mins, k + HALF, row, mask, K, stride_s, GROUP).T * factor
        tl.store(out_at + HALF, _scaled(high, s_high, m_high, HAS_MINS, TYPE), mask=mask[:, None])
