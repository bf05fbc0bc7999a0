"""What happens to activations between the matrix products: norms, gated activations, quantized inputs.

One program a row for the norms, whose width fits a program's registers; a grid over rows and columns for what has no
sum. Sums are in float32 and in an order that depends on the width alone.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.variants import TYPE_NAMES, Variant

#: Columns of one program of the elementwise kernels.
_BLOCK: Final = 1024


@triton.jit
def _tanh(x):
    # exp overflows to infinity for large x, which divides to 0.
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def activation(x, KIND: tl.constexpr):
    """act(x), float32. KIND: an `ops.operations.Activation`."""
    if KIND == "silu":
        return x / (1.0 + tl.exp(-x))
    if KIND == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    if KIND == "relu":
        return tl.where(x < 0.0, 0.0, x)
    if KIND == "relu2":
        return tl.where(x < 0.0, 0.0, x * x)
    if KIND == "quick_gelu":
        return x / (1.0 + tl.exp(-1.702 * x))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    # 0.5 * (1 + tanh(u)) is the logistic function of 2 u.
    return x / (1.0 + tl.exp(-2.0 * inner))


@triton.jit
def activated(gate, up, KIND: tl.constexpr):
    """act(gate) * up, float32. swiglu_oai, gegelu: `reference.act_mul`."""
    if KIND == "swiglu_oai" or KIND == "gegelu":
        limit: tl.constexpr = 20.0 if KIND == "gegelu" else 7.0
        gate = tl.where(gate > limit, limit, gate)
        up = tl.where(up > limit, limit, tl.where(up < -limit, -limit, up))
        return gate / (1.0 + tl.exp(-1.702 * gate)) * (up + 1.0)
    return activation(gate, KIND) * up


@triton.jit
def _store_quantized(out_q, out_scale, row, columns, mask, width, values, INT8: tl.constexpr):
    """A row's values on a scale of its own."""
    largest = tl.max(tl.where(mask, tl.abs(values), 0.0), 0)
    limit = 127.0 if INT8 else 448.0
    scale = tl.where(largest > 0, largest / limit, 1.0)
    scaled = values / scale
    if INT8:
        # Adding and taking away 1.5 * 2**23 rounds to the nearest even.
        scaled = (scaled + 12582912.0) - 12582912.0
    else:
        scaled = tl.clamp(scaled, -limit, limit)
    tl.store(out_q + row * width + columns, scaled.to(out_q.dtype.element_ty), mask=mask)
    tl.store(out_scale + row, scale)


@jit(chained=True)
def _norm_kernel(
    out, out_scale, residual, x, weight, eps, width,
    BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, QUANTIZE: tl.constexpr, INT8: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """A row: residual += x if there is one; out = its norm, quantized or not."""
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + row * width + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual + row * width + columns, values.to(residual.dtype.element_ty), mask=mask)
    mean = tl.sum(values * values, 0) / width
    scale = tl.load(weight + columns, mask=mask, other=0.0)
    normed = values * tl.rsqrt(mean + eps) * scale
    if QUANTIZE:
        _store_quantized(out, out_scale, row, columns, mask, width, normed, INT8)
    else:
        tl.store(out + row * width + columns, normed.to(out.dtype.element_ty), mask=mask)


@jit(chained=True)
def _layer_norm_kernel(
    out, residual, x, weight, bias, eps, width,
    BLOCK: tl.constexpr, HAS_RESIDUAL: tl.constexpr, HAS_BIAS: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """A row: residual += x if there is one; out = its layer norm."""
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + row * width + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(residual + row * width + columns, values.to(residual.dtype.element_ty), mask=mask)
    centred = tl.where(mask, values - tl.sum(values, 0) / width, 0.0)
    variance = tl.sum(centred * centred, 0) / width
    normed = centred * tl.rsqrt(variance + eps) * tl.load(weight + columns, mask=mask, other=0.0)
    if HAS_BIAS:
        normed += tl.load(bias + columns, mask=mask, other=0.0)
    tl.store(out + row * width + columns, normed.to(out.dtype.element_ty), mask=mask)


@jit
def _softplus(x):
    return tl.where(x > 20.0, x, tl.log(1.0 + tl.exp(x)))


@jit
def _xielu_kernel(out, x, parameters, count, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    values = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    positive, negative = _softplus(tl.load(parameters)), 0.5 + _softplus(tl.load(parameters + 1))
    # e^z - 1 for z < 0. Near zero the difference would lose its digits; there are those of the series.
    z = tl.minimum(values, -1e-6)
    series = z + z * z * (0.5 + z * (1 / 6 + z * (1 / 24 + z * (1 / 120 + z * (1 / 720)))))
    below = (tl.where(z < -0.25, tl.exp(z) - 1.0, series) - values) * negative
    activated = tl.where(values > 0.0, positive * values * values, below) + 0.5 * values
    tl.store(out + index, activated.to(out.dtype.element_ty), mask=mask)


@jit(chained=True)
def _plain_act_kernel(out, x, count, KIND: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False):
    wait_turn(CHAINED)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    values = tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + index, activation(values, KIND).to(out.dtype.element_ty), mask=mask)


@jit(chained=True)
def _act_kernel(out, gate_up, width, KIND: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False):
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, activated(gate, up, KIND).to(out.dtype.element_ty), mask=mask)


@jit(chained=True)
def _act_quant_kernel(
    out_q, out_scale, gate_up, width, KIND: tl.constexpr, INT8: tl.constexpr, BLOCK: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(gate_up + row * 2 * width + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + columns, mask=mask, other=0.0).to(tl.float32)
    _store_quantized(out_q, out_scale, row, columns, mask, width, activated(gate, up, KIND), INT8)


@jit(chained=True)
def _quantize_kernel(
    out_q, out_scale, x, width, INT8: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False
):
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    values = tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    _store_quantized(out_q, out_scale, row, columns, mask, width, values, INT8)


@jit(chained=True)
def _add_kernel(residual, x, count, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False):
    wait_turn(CHAINED)
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    values = tl.load(residual + index, mask=mask, other=0.0).to(tl.float32)
    values += tl.load(x + index, mask=mask, other=0.0).to(tl.float32)
    tl.store(residual + index, values.to(residual.dtype.element_ty), mask=mask)


@jit(chained=True)
def _add_gated_kernel(residual, x, gates, width, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False):
    wait_turn(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = 1.0 / (1.0 + tl.exp(-tl.load(gates + row)))
    values = tl.load(residual + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    values += gate * tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(residual + row * width + columns, values.to(residual.dtype.element_ty), mask=mask)


@jit
def _soft_cap_kernel(x, cap, count, BLOCK: tl.constexpr):
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    values = tl.load(x + index, mask=mask, other=0.0)
    tl.store(x + index, cap * _tanh(values / cap), mask=mask)


@jit(do_not_specialize=["count"])
def _resolve_kernel(ids, last_ids, count, BLOCK: tl.constexpr):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < count
    value = tl.load(ids + index, mask=mask, other=0)
    pending = mask & (value < 0)
    last = tl.load(last_ids - value - 1, mask=pending, other=0)
    tl.store(ids + index, tl.maximum(last, 0), mask=pending)


def row_block(width: int) -> tuple[int, int]:
    """Columns and warps of a program that holds a whole row."""
    block = triton.next_power_of_2(width)
    return block, min(16, max(1, block // 512))


def _norm(
    out: Tensor, out_scale: Tensor | None, residual: Tensor | None, x: Tensor, weight: Tensor, eps: float
) -> None:
    rows, width = x.shape
    if rows == 0:
        return
    block, num_warps = row_block(width)
    _norm_kernel[(rows,)](
        out,
        out_scale,
        residual,
        x,
        weight,
        eps,
        width,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
        QUANTIZE=out_scale is not None,
        INT8=out.dtype == torch.int8,
        num_warps=num_warps,
    )


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """`reference.rms_norm`; out may be x."""
    _norm(out, None, None, x, weight, eps)


def add_rms_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """`reference.add_rms_norm`. The norm is that of the sum before it is rounded to the residual's type."""
    _norm(out, None, residual, x, weight, eps)


def add_rms_norm_quant(
    out_q: Tensor, out_scale: Tensor, residual: Tensor, x: Tensor, weight: Tensor, eps: float
) -> None:
    """residual += x, and `quantize_rows` of its norm."""
    _norm(out_q, out_scale, residual, x, weight, eps)


def _layer_norm(
    out: Tensor, residual: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    rows, width = x.shape
    if rows == 0:
        return
    block, num_warps = row_block(width)
    _layer_norm_kernel[(rows,)](
        out,
        residual,
        x,
        weight,
        bias,
        eps,
        width,
        BLOCK=block,
        HAS_RESIDUAL=residual is not None,
        HAS_BIAS=bias is not None,
        num_warps=num_warps,
    )


def layer_norm(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    """`reference.layer_norm`; out may be x."""
    _layer_norm(out, None, x, weight, bias, eps)


def add_layer_norm(out: Tensor, residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> None:
    """`reference.add_layer_norm`. The norm is that of the sum before it is rounded to the residual's type."""
    _layer_norm(out, residual, x, weight, bias, eps)


def add_(residual: Tensor, x: Tensor) -> None:
    """residual += x."""
    count = residual.numel()
    if count:
        _add_kernel[(triton.cdiv(count, _BLOCK),)](residual, x, count, BLOCK=_BLOCK)


def add_gated_(residual: Tensor, x: Tensor, gates: Tensor) -> None:
    """`reference.add_gated_`."""
    rows, width = x.shape
    if rows:
        _add_gated_kernel[(rows, triton.cdiv(width, _BLOCK))](residual, x, gates, width, BLOCK=_BLOCK)


def act_mul(out: Tensor, gate_up: Tensor, kind: str) -> None:
    """`reference.act_mul`."""
    rows, width = out.shape
    if rows:
        grid = (rows, triton.cdiv(width, _BLOCK))
        _act_kernel[grid](out, gate_up, width, KIND=kind, BLOCK=_BLOCK)


def act(out: Tensor, x: Tensor, kind: str, parameters: Tensor | None = None) -> None:
    """`reference.act`."""
    count = out.numel()
    if count and kind == "xielu":
        _xielu_kernel[(triton.cdiv(count, _BLOCK),)](out, x, parameters, count, BLOCK=_BLOCK)
    elif count:
        _plain_act_kernel[(triton.cdiv(count, _BLOCK),)](out, x, count, KIND=kind, BLOCK=_BLOCK)


def act_mul_quant(out_q: Tensor, out_scale: Tensor, gate_up: Tensor, kind: str) -> None:
    """`quantize_rows` of `act_mul`, which is not rounded in between."""
    rows, width = out_q.shape
    if rows:
        block, num_warps = row_block(width)
        _act_quant_kernel[(rows,)](
            out_q,
            out_scale,
            gate_up,
            width,
            KIND=kind,
            INT8=out_q.dtype == torch.int8,
            BLOCK=block,
            num_warps=num_warps,
        )


def quantize_rows(out_q: Tensor, out_scale: Tensor, x: Tensor) -> None:
    """out_q [T, K] = x [T, K] / out_scale [T, 1], rounded to nearest: float8_e4m3fn or int8.

    A row's scale, float32, is its largest magnitude over the type's (448, 127); 1 for a row of zeros.
    """
    rows, width = x.shape
    if rows:
        block, num_warps = row_block(width)
        _quantize_kernel[(rows,)](
            out_q, out_scale, x, width, INT8=out_q.dtype == torch.int8, BLOCK=block, num_warps=num_warps
        )


def soft_cap_(x: Tensor, cap: float) -> None:
    """`reference.soft_cap_`."""
    count = x.numel()
    if count:
        _soft_cap_kernel[(triton.cdiv(count, _BLOCK),)](x, cap, count, BLOCK=_BLOCK)


def resolve_ids(ids: Tensor, last_ids: Tensor) -> None:
    """`reference.resolve_ids`."""
    if ids.numel():
        _resolve_kernel[(triton.cdiv(ids.numel(), _BLOCK),)](ids, last_ids, ids.numel(), BLOCK=_BLOCK)


def variants() -> list[Variant]:
    found: list[Variant] = []
    for width in (576, 1024, 4096):
        block, num_warps = row_block(width)
        for out in (torch.bfloat16, torch.float8_e4m3fn, torch.int8):
            constexprs: dict[str, Any] = {
                "BLOCK": block, "HAS_RESIDUAL": True, "QUANTIZE": out != torch.bfloat16, "INT8": out == torch.int8
            }  # fmt: skip
            pointers = {"out": f"*{TYPE_NAMES[out]}", "residual": "*bf16", "x": "*bf16", "weight": "*fp32"}
            if out == torch.bfloat16:
                constexprs["out_scale"] = None
            else:
                pointers["out_scale"] = "*fp32"
            found.append(
                Variant(
                    name=f"add_rms_norm {width} to {TYPE_NAMES[out]}",
                    kernel=_norm_kernel,
                    signature={**pointers, "eps": "fp32", "width": "i32"},
                    constexprs=constexprs,
                    num_warps=num_warps,
                    divisible=frozenset({*pointers, "width"}),
                    min_capability=89 if out == torch.float8_e4m3fn else 80,
                )
            )
    block, num_warps = row_block(4096)
    pointers = {"out": "*bf16", "residual": "*bf16", "x": "*bf16", "weight": "*fp32", "bias": "*fp32"}
    found.append(
        Variant(
            name="add_layer_norm 4096",
            kernel=_layer_norm_kernel,
            signature={**pointers, "eps": "fp32", "width": "i32"},
            constexprs={"BLOCK": block, "HAS_RESIDUAL": True, "HAS_BIAS": True},
            num_warps=num_warps,
            divisible=frozenset({*pointers, "width"}),
        )
    )
    pointers = {"residual": "*bf16", "x": "*bf16", "gates": "*fp32"}
    found.append(
        Variant(
            name="add_gated 2048",
            kernel=_add_gated_kernel,
            signature={**pointers, "width": "i32"},
            constexprs={"BLOCK": _BLOCK},
            divisible=frozenset({*pointers, "width"}),
        )
    )
    found.append(
        Variant(
            name="act xielu",
            kernel=_xielu_kernel,
            signature={"out": "*bf16", "x": "*bf16", "parameters": "*fp32", "count": "i32"},
            constexprs={"BLOCK": _BLOCK},
            divisible=frozenset({"out", "x", "parameters", "count"}),
        )
    )
    found.append(
        Variant(
            name="act gelu",
            kernel=_plain_act_kernel,
            signature={"out": "*bf16", "x": "*bf16", "count": "i32"},
            constexprs={"KIND": "gelu", "BLOCK": _BLOCK},
            divisible=frozenset({"out", "x", "count"}),
        )
    )
    found += [
        Variant(
            name=f"act_mul {width} {kind}",
            kernel=_act_kernel,
            signature={"out": "*bf16", "gate_up": "*bf16", "width": "i32"},
            constexprs={"KIND": kind, "BLOCK": _BLOCK},
            divisible=frozenset({"out", "gate_up", "width"}),
        )
        for kind, width in (("silu", 14336), ("swiglu_oai", 2880))
    ]
    block, num_warps = row_block(14336)
    found.append(
        Variant(
            name="act_mul_quant 14336",
            kernel=_act_quant_kernel,
            signature={"out_q": "*i8", "out_scale": "*fp32", "gate_up": "*bf16", "width": "i32"},
            constexprs={"KIND": "silu", "INT8": True, "BLOCK": block},
            num_warps=num_warps,
            divisible=frozenset({"out_q", "out_scale", "gate_up", "width"}),
        )
    )
    return found
