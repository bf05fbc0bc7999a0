"""Packed weights of the native CPU kernels: `linear` and `embedding`, and the packing that goes before them.

Weights are packed once, at load, into the tile order of csrc/cpu/kernels/linear.h; that copy is the only one kept.
Scales of two levels (GGUF's K formats) stay two, so that a weight takes the bits that it has in the file, or nearly.
Integer weights are multiplied by activations quantised to 8 bits in groups of 32, or 15 where a value stands out;
bfloat16 weights by activations rounded to bfloat16 where the processor has such products; other float weights in f32,
and so those whose values stand in a table (float8, nf4). Floats in fixed point meet activations in fixed point.
A row of the result depends on that row of x alone, bit for bit, whatever T and the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.kernels import act, act_mul
from octavo.ops.cpu.lora import lora_delta
from octavo.ops.experts import grouped_experts, linear_of_heads
from octavo.quant.packed import E4M3_VALUES, FileValues, QuantizedWeight, ScaleLevels, Scales, as_floats, multiplied

_FLOAT_KINDS: Final = {torch.bfloat16: (1, "bf16"), torch.float16: (2, "f16"), torch.float32: (3, "f32")}
_F32: Final = torch.float32
# ScaleForm of csrc/cpu/kernels/linear.h.
_HALF_SCALES: Final = 0
_WIDE_SCALES: Final = 1
_TWO_LEVELS: Final = 2


class LinearWeight:
    """One or several [N_i, K] matrices, stacked along N and packed. `nbytes` is what one use of it reads."""

    __slots__ = ("K", "N", "kind", "native", "nbytes")

    def __init__(self, native: _cpu.PackedLinear, kind: str) -> None:
        self.native = native
        self.N: Final = native.N
        self.K: Final = native.K
        self.nbytes: Final = native.nbytes
        self.kind: Final = kind

    def __repr__(self) -> str:
        return f"LinearWeight({self.kind}, N={self.N}, K={self.K}, {self.nbytes} bytes)"


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """A float matrix [N, K] that is packed with 16 bits a value and a scale for every 128 values of K."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.values.shape


Weight = Tensor | QuantizedWeight | FixedPoint


class EmbeddingWeight:
    """A packed [N, K] table of rows. It may share its memory with the LinearWeight of a tied output layer.

    `nbytes` is what one use of it reads: a row.
    """

    __slots__ = ("K", "N", "kind", "native", "nbytes")

    def __init__(self, native: _cpu.PackedLinear, kind: str) -> None:
        self.native = native
        self.N: Final = native.N
        self.K: Final = native.K
        self.nbytes: Final = native.nbytes // native.N
        self.kind: Final = kind


def pack_linear(weight: Weight, bias: Tensor | None = None) -> LinearWeight:
    """Pack a [N, K] weight: float32, bfloat16, float16, or quantized. bias [N], any float type."""
    return pack_linear_many([weight], [bias])


def fixed_point(weight: Tensor) -> Tensor | FixedPoint:
    """A float32 or float16 matrix for the packers, its products in fixed point: in half the time, with errors of 1e-4
    of their root mean square. bfloat16 has products of its own."""
    return weight if weight.dtype == torch.bfloat16 else FixedPoint(weight)


def pack_output(weight: Weight, bias: Tensor | None = None) -> LinearWeight:
    """Pack the [N, K] weight of the output layer; bias [N], any float type."""
    return pack_linear(weight, bias)


def pack_linear_many(weights: Sequence[Weight], biases: Sequence[Tensor | None] | None = None) -> LinearWeight:
    """Pack [N_i, K] weights as one, stacked along N. Each keeps its own type and bits; x is quantised once for all."""
    if not weights:
        raise ValueError("nothing to pack")
    columns = weights[0].shape[1]
    if any(weight.shape[1] != columns for weight in weights):
        raise ValueError(f"stacked weights must all have {columns} columns")
    native = _cpu.PackedLinear(columns)
    given = biases if biases is not None else [None] * len(weights)
    order = _common_order(weights)
    if order is not None:
        native.set_order(order.data_ptr())
    kinds = [
        _add(native, weight if order is not None else _in_order(weight), bias)
        for weight, bias in zip(weights, given, strict=True)
    ]
    return LinearWeight(native, "+".join(dict.fromkeys(kinds)))


def pack_experts(
    experts: Iterable[tuple[Sequence[Weight], Sequence[Tensor | None]]],
) -> tuple[LinearWeight, ...]:
    """For each expert its matrices, [N_i, K] one below the other, and their biases."""
    return tuple(pack_linear_many(*each) for each in experts)


pack_heads = pack_experts


def pack_embedding(weight: Weight) -> EmbeddingWeight:
    """Pack a [N, K] table of rows."""
    return tied_embedding(pack_linear(weight))


def tied_embedding(weight: LinearWeight) -> EmbeddingWeight:
    """The table whose rows are those of a packed linear weight, without a copy: for tied output layers."""
    return EmbeddingWeight(weight.native, weight.kind)


def linear(out: Tensor, x: Tensor, w: LinearWeight) -> None:
    """out [T, N] = x [T, K] @ w.T + bias, both float32. Rows may lie apart, the values of a row may not."""
    rows, columns = x.shape
    ldx, x_step = x.stride()
    ldo, out_step = out.stride()
    assert columns == w.K and out.shape == (rows, w.N), (x.shape, out.shape, w)
    assert x.dtype is _F32 and out.dtype is _F32 and x_step == out_step == 1
    w.native.linear(out.data_ptr(), ldo, x.data_ptr(), ldx, rows)


def embedding(out: Tensor, ids: Tensor, w: EmbeddingWeight, scale: float = 1.0) -> None:
    """out [T, K] = scale * w[ids], float32; ids int32 [T], all in [0, N): the caller has checked them."""
    assert out.shape == (ids.shape[0], w.K) and out.dtype == torch.float32 and out.stride(1) == 1
    assert ids.dtype == torch.int32 and ids.is_contiguous()
    w.native.gather(out.data_ptr(), out.stride(0), ids.data_ptr(), ids.shape[0], scale)


#: What the native program does without a way through Python between the groups.
experts = partial(grouped_experts, linear, act_mul, act, lora_delta)
head_linear = partial(linear_of_heads, linear)


def has_integer_layout(weight: QuantizedWeight) -> bool:
    """Whether the groups fit the kernels'. A weight with other groups is packed as float32."""
    return weight.table is None and weight.group_size % 16 == 0


def has_table_layout(weight: QuantizedWeight) -> bool:
    """Whether the kernels take the values of a table from their codes: 16 of any kind, or float8 e4m3."""
    if weight.table is None or weight.group_size % 2:
        return False
    return weight.bits == 4 or bool((weight.table.view(torch.int32) == E4M3_VALUES.view(torch.int32)).all())


def _add(native: _cpu.PackedLinear, weight: Weight, bias: Tensor | None) -> str:
    bias32 = None if bias is None else bias.to(torch.float32).contiguous()
    if bias32 is not None and bias32.shape != (weight.shape[0],):
        raise ValueError(f"bias {tuple(bias32.shape)} does not fit a weight of {weight.shape[0]} rows")
    bias_ptr = 0 if bias32 is None else bias32.data_ptr()
    if isinstance(weight, FixedPoint):
        values = weight.values.to(_F32).contiguous()
        native.add_fixed(values.data_ptr(), values.shape[0], bias_ptr)
        return "fixed16"
    if isinstance(weight, QuantizedWeight):
        if has_integer_layout(weight):
            return _add_int(native, weight, bias_ptr)
        if has_table_layout(weight):
            return _add_table(native, weight, bias_ptr)
        # What the order of the whole says of columns is true of these floats too.
        weight = replace(weight, order=None).dequantize()
    if weight.dtype not in _FLOAT_KINDS:
        raise ValueError(f"no packed layout for {weight.dtype} weights")
    code, kind = _FLOAT_KINDS[weight.dtype]
    dense = weight.contiguous()
    native.add_float(dense.data_ptr(), dense.shape[0], code, bias_ptr)
    return kind


def _add_int(native: _cpu.PackedLinear, weight: QuantizedWeight, bias_ptr: int) -> str:
    group, scales, mins = weight.group_size, weight.scales, weight.mins
    if group != 16 and group % 32:
        # The kernels want 16 or whole groups of 32 activations: repeat the scales of an odd multiple of 16.
        scales = multiplied(scales).repeat_interleave(group // 16, dim=1)
        mins = None if mins is None else multiplied(mins).repeat_interleave(group // 16, dim=1)
        group = 16
    form = _TWO_LEVELS if isinstance(scales, ScaleLevels) else _WIDE_SCALES if scales.dtype == _F32 else _HALF_SCALES
    parts = [*_native(scales), *_native(mins)]
    steps, factors, min_steps, min_factors = [None if part is None else part.contiguous() for part in parts]
    file = weight.values if isinstance(weight.values, FileValues) else None
    values = weight.unpacked().contiguous() if file is None else file.data
    native.add_int(
        _address(values),
        None if file is None else file.format.native,
        0 if file is None else _address(file.rows),
        weight.num_rows,
        weight.bits,
        group,
        form,
        _address(steps),
        _address(min_steps),
        _address(factors),
        _address(min_factors),
        weight.zero,
        bias_ptr,
    )
    return f"int{weight.bits}"


def _add_table(native: _cpu.PackedLinear, weight: QuantizedWeight, bias_ptr: int) -> str:
    assert weight.table is not None
    codes, scales = weight.unpacked().contiguous(), multiplied(weight.scales).to(_F32).contiguous()
    table = weight.table.contiguous() if weight.bits == 4 else None
    native.add_table(_address(codes), weight.num_rows, weight.group_size, _address(scales), _address(table), bias_ptr)
    return "table4" if weight.bits == 4 else "float8"


def _order_of(weight: Weight) -> Tensor | None:
    return weight.order if isinstance(weight, QuantizedWeight) else None


def _in_order(weight: Weight) -> Weight:
    """As floats, whose columns stand as those of x, where those of the weight do not."""
    return as_floats(weight) if isinstance(weight, QuantizedWeight) and weight.order is not None else weight


def _common_order(weights: Sequence[Weight]) -> Tensor | None:
    """The order of the columns, if all weights have the same one. What is quantized from one input has."""
    first = _order_of(weights[0])
    if first is None:
        return None
    others = (_order_of(weight) for weight in weights[1:])
    return first.contiguous() if all(other is not None and torch.equal(other, first) for other in others) else None


def _native(scales: Scales | None) -> tuple[Tensor | None, Tensor | None]:
    """Scales, or mins, as add_int takes them: the values, or the steps of two levels and their factors."""
    return (scales.steps, scales.factors) if isinstance(scales, ScaleLevels) else (scales, None)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
