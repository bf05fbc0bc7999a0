"""`reference_streams` on a GPU: one program a row where the row has a sum, else a grid over rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.reference_streams import LEAST_SQUARE
from octavo.ops.stream_operations import MAX_STREAMS
from octavo.ops.triton.elementwise import activation, row_block
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

#: Columns of one program of the kernels without sums.
_BLOCK: Final = 1024


@jit
def _multiply_kernel(x, factors, width, HAS_ONE: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    place = x + tl.program_id(0).to(tl.int64) * width + columns
    factor = tl.load(factors) if HAS_ONE else tl.load(factors + columns, mask=mask, other=0.0)
    tl.store(place, (tl.load(place, mask=mask, other=0.0).to(tl.float32) * factor).to(x.dtype.element_ty), mask=mask)


@jit
def _match_kernel(x, to, width, least, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    wanted = tl.load(to + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    target = tl.sqrt(tl.sum(wanted * wanted, 0) / width)
    size = tl.sqrt(tl.maximum(tl.sum(values * values, 0) / width, least))
    tl.store(x + row * width + columns, (values * target / size).to(x.dtype.element_ty), mask=mask)


@jit
def _cut_kernel(x, row_width, width, deviations, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    place = x + tl.program_id(0).to(tl.int64) * row_width + columns
    gates = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(gates, 0) / width
    centred = tl.where(mask, gates - mean, 0.0)
    above = gates - (mean + deviations * tl.sqrt(tl.sum(centred * centred, 0) / width))
    tl.store(place, tl.where(above < 0.0, 0.0, above).to(x.dtype.element_ty), mask=mask)


@jit
def _act_times_kernel(out, x, y, first, width, y_width, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    times = tl.load(y + row * y_width + first + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (activation(gate, KIND) * times).to(out.dtype.element_ty), mask=mask)


@triton.jit
def _stream(s0, s1, s2, s3, s4, s5, s6, s7, NUMBER: tl.constexpr):
    """Pointers come one by one; which of them is meant is known when the kernel is compiled."""
    if NUMBER == 0:
        return s0
    if NUMBER == 1:
        return s1
    if NUMBER == 2:
        return s2
    if NUMBER == 3:
        return s3
    if NUMBER == 4:
        return s4
    if NUMBER == 5:
        return s5
    if NUMBER == 6:
        return s6
    return s7


@triton.jit
def _coefficient(scores, coefs, row, number, N: tl.constexpr, BLOCK_N: tl.constexpr):
    """Row `number` of coefs . tanh(scores of the row)."""
    k = tl.arange(0, BLOCK_N)
    score = tl.load(scores + row * N + k, mask=k < N, other=0.0).to(tl.float32)
    # exp overflows to infinity for a large score, which divides to 0.
    tanh = 1.0 - 2.0 / (tl.exp(2.0 * score) + 1.0)
    return tl.sum(tl.load(coefs + number * N + k, mask=k < N, other=0.0) * tanh, 0)


@jit
def _predict_kernel(
    s0, s1, s2, s3, s4, s5, s6, s7, scores, coefs, width, N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """The streams change in place: all sums of a block of columns are made before the first is stored."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    at = row * width + columns
    number = tl.arange(0, BLOCK_N)[:, None]
    sums = tl.zeros([BLOCK_N, BLOCK], tl.float32)
    for i in tl.static_range(N):
        x = tl.load(_stream(s0, s1, s2, s3, s4, s5, s6, s7, i) + at, mask=mask, other=0.0).to(tl.float32)
        for j in tl.static_range(N):
            share = _coefficient(scores, coefs, row, j * N + i, N, BLOCK_N) + (1.0 if i == j else 0.0)
            sums += tl.where(number == j, share * x[None, :], 0.0)
    for j in tl.static_range(N):
        stream = _stream(s0, s1, s2, s3, s4, s5, s6, s7, j)
        predicted = tl.sum(tl.where(number == j, sums, 0.0), 0)
        tl.store(stream + at, predicted.to(stream.dtype.element_ty), mask=mask)


@jit
def _correct_kernel(
    out, s0, s1, s2, s3, s4, s5, s6, s7, activated, scores, coefs, scale, width,
    N: tl.constexpr, ACTIVE: tl.constexpr, HAS_SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    at = row * width + columns
    before = tl.load(_stream(s0, s1, s2, s3, s4, s5, s6, s7, ACTIVE) + at, mask=mask, other=0.0).to(tl.float32)
    news = tl.load(activated + at, mask=mask, other=0.0).to(tl.float32) - before
    for j in tl.static_range(N):
        stream = _stream(s0, s1, s2, s3, s4, s5, s6, s7, j)
        x = tl.load(stream + at, mask=mask, other=0.0).to(tl.float32)
        corrected = x + news * (_coefficient(scores, coefs, row, j, N, BLOCK_N) + 1.0)
        tl.store(stream + at, corrected.to(stream.dtype.element_ty), mask=mask)
        if j == ACTIVE:
            if HAS_SCALE:
                corrected *= tl.load(scale + columns, mask=mask, other=0.0)
            tl.store(out + at, corrected.to(out.dtype.element_ty), mask=mask)


def multiply_(x: Tensor, factors: Tensor) -> None:
    """`reference_streams.multiply_`."""
    rows, width = x.shape
    if rows:
        grid = (rows, triton.cdiv(width, _BLOCK))
        _multiply_kernel[grid](x, factors, width, HAS_ONE=factors.numel() != width, BLOCK=_BLOCK)


def match_rms_(x: Tensor, to: Tensor) -> None:
    """`reference_streams.match_rms_`."""
    rows, width = x.shape
    if rows:
        block, num_warps = row_block(width)
        _match_kernel[(rows,)](x, to, width, LEAST_SQUARE, BLOCK=block, num_warps=num_warps)


def cut_gates_(x: Tensor, width: int, deviations: float) -> None:
    """`reference_streams.cut_gates_`."""
    rows, row_width = x.shape
    if rows:
        block, num_warps = row_block(width)
        _cut_kernel[(rows,)](x, row_width, width, deviations, BLOCK=block, num_warps=num_warps)


def act_times(out: Tensor, x: Tensor, y: Tensor, first: int, kind: str) -> None:
    """`reference_streams.act_times`."""
    rows, width = out.shape
    if rows:
        grid = (rows, triton.cdiv(width, _BLOCK))
        _act_times_kernel[grid](out, x, y, first, width, y.shape[1], KIND=kind, BLOCK=_BLOCK)


def altup_predict_(streams: Sequence[Tensor], scores: Tensor, coefs: Tensor) -> None:
    """`reference_streams.altup_predict_`."""
    rows, width = streams[0].shape
    if rows:
        block = _stream_block(len(streams))
        _predict_kernel[(rows, triton.cdiv(width, block))](
            *_filled(streams), scores, coefs, width, **_stream_constants(len(streams)), BLOCK=block
        )


def altup_correct_(
    out: Tensor,
    streams: Sequence[Tensor],
    activated: Tensor,
    scores: Tensor,
    coefs: Tensor,
    active: int,
    scale: Tensor | None = None,
) -> None:
    """`reference_streams.altup_correct_`."""
    rows, width = out.shape
    if rows:
        _correct_kernel[(rows, triton.cdiv(width, _BLOCK))](
            out,
            *_filled(streams),
            activated,
            scores,
            coefs,
            scale,
            width,
            ACTIVE=active,
            HAS_SCALE=scale is not None,
            BLOCK=_BLOCK,
            **_stream_constants(len(streams)),
        )


def _filled(streams: Sequence[Tensor]) -> list[Tensor]:
    """As many as the kernels have arguments for; what is too much is not looked at."""
    return [*streams, *[streams[0]] * (MAX_STREAMS - len(streams))]


def _stream_block(count: int) -> int:
    """Columns of a program that holds those of all streams."""
    block: int = _BLOCK // triton.next_power_of_2(count)
    return block


def _stream_constants(count: int) -> dict[str, Any]:
    return {"N": count, "BLOCK_N": triton.next_power_of_2(count)}


def variants() -> list[Variant]:
    pointers = {f"s{number}": "*bf16" for number in range(MAX_STREAMS)} | {"scores": "*fp32", "coefs": "*fp32"}
    block, num_warps = row_block(2048)
    gates, gate_warps = row_block(16384)

    def variant(name: str, kernel: Any, signature: dict[str, str], warps: int = 4, **constexprs: Any) -> Variant:
        divisible = frozenset(key for key, kind in signature.items() if kind != "fp32")
        return Variant(
            name=name, kernel=kernel, signature=signature, constexprs=constexprs, num_warps=warps, divisible=divisible
        )

    return [
        variant("multiply", _multiply_kernel, {"x": "*bf16", "factors": "*fp32", "width": "i32"}, HAS_ONE=False,
                BLOCK=_BLOCK),
        variant("match_rms 2048", _match_kernel, {"x": "*bf16", "to": "*bf16", "width": "i32", "least": "fp32"},
                num_warps, BLOCK=block),
        variant("cut_gates 16384", _cut_kernel,
                {"x": "*bf16", "row_width": "i32", "width": "i32", "deviations": "fp32"}, gate_warps, BLOCK=gates),
        variant("act_times", _act_times_kernel,
                {"out": "*bf16", "x": "*bf16", "y": "*bf16", "first": "i32", "width": "i32", "y_width": "i32"},
                KIND="gelu_tanh", BLOCK=_BLOCK),
        variant("altup_predict 4", _predict_kernel, {**pointers, "width": "i32"}, **_stream_constants(4),
                BLOCK=_stream_block(4)),
        variant("altup_correct 4", _correct_kernel,
                {"out": "*bf16", **pointers, "activated": "*bf16", "scale": "*fp32", "width": "i32"},
                **_stream_constants(4), ACTIVE=0, HAS_SCALE=True, BLOCK=_BLOCK),
    ]  # fmt: skip
