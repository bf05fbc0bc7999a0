"""What some models do to q, k and v before they are rotated, in place: bounds, and norms of parts of a row."""

from __future__ import annotations

from typing import Final

import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.elementwise import row_block
from octavo.ops.triton.launching import jit
from octavo.ops.triton.variants import Variant

#: Values of one program that bounds.
_BLOCK: Final = 1024


@jit
def _clip_kernel(x, limit, count, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    values = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(x + index, tl.minimum(tl.maximum(values, -limit), limit).to(x.dtype.element_ty), mask=mask)


@jit
def _norm_parts_kernel(
    x, weight, bias, eps, row_width, first, width,
    BLOCK: tl.constexpr, IS_LAYER_NORM: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_OWN: tl.constexpr,
):  # fmt: skip
    """A part of a row, in place."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    place = x + row * row_width + first + part * width + columns
    values = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if IS_LAYER_NORM:
        values = tl.where(mask, values - tl.sum(values, 0) / width, 0.0)
    own = columns + (part * width if HAS_OWN else 0)
    normed = values * tl.rsqrt(tl.sum(values * values, 0) / width + eps) * tl.load(weight + own, mask=mask, other=0.0)
    if HAS_BIAS:
        normed += tl.load(bias + own, mask=mask, other=0.0)
    tl.store(place, normed.to(x.dtype.element_ty), mask=mask)


def clip_(x: Tensor, limit: float) -> None:
    """`reference.clip_`."""
    count = x.numel()
    if count:
        _clip_kernel[(triton.cdiv(count, _BLOCK),)](x, limit, count, BLOCK=_BLOCK)


def norm_parts_(
    x: Tensor, first: int, count: int, width: int, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> None:
    """`reference.norm_parts_`."""
    rows, row_width = x.shape
    if rows == 0:
        return
    block, num_warps = row_block(width)
    _norm_parts_kernel[(rows, count)](
        x,
        weight,
        bias,
        eps,
        row_width,
        first,
        width,
        BLOCK=block,
        IS_LAYER_NORM=kind == "layer",
        HAS_BIAS=bias is not None,
        HAS_OWN=weight.numel() != width,
        num_warps=num_warps,
    )


def variants() -> list[Variant]:
    block, num_warps = row_block(128)
    return [
        Variant(
            name="clip",
            kernel=_clip_kernel,
            signature={"x": "*bf16", "limit": "fp32", "count": "i32"},
            constexprs={"BLOCK": _BLOCK},
            divisible=frozenset({"x", "count"}),
        ),
        Variant(
            name="norm_parts 128",
            kernel=_norm_parts_kernel,
            signature={
                "x": "*bf16",
                "weight": "*fp32",
                "bias": "*fp32",
                "eps": "fp32",
                "row_width": "i32",
                "first": "i32",
                "width": "i32",
            },
            constexprs={"BLOCK": block, "IS_LAYER_NORM": True, "HAS_BIAS": True, "HAS_OWN": True},
            num_warps=num_warps,
            divisible=frozenset({"x", "weight", "bias", "row_width", "first", "width"}),
        ),
    ]
