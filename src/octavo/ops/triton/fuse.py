"""A program rewritten for a GPU: pairs of operations that run better as one kernel.

A matrix whose input is quantized gets it from the norm or the activation in front, which has the row at hand; a gated
activation is computed by the product before it, where that is few rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Act, Activation, AddNorm, Linear, Op
from octavo.ops.program import Program
from octavo.ops.run import Frame, Handler, Runner, Table, Weights
from octavo.ops.triton import elementwise, linear


@dataclass(frozen=True, kw_only=True)
class AddNormQuant(Op):
    """`AddNorm`, whose result is quantized: values [T, K], and the scale of each row, float32 [T, 1]."""

    values: Buffer
    scales: Buffer
    residual: Buffer
    x: Buffer
    weight: Weight
    eps: float
    writes: ClassVar = ("values", "scales")
    changes: ClassVar = ("residual",)

    def widths(self) -> Any:
        yield from ((buffer, self.weight.shape[0]) for buffer in (self.values, self.residual, self.x))


@dataclass(frozen=True, kw_only=True)
class ActQuant(Op):
    """`Act`, whose result is quantized."""

    values: Buffer
    scales: Buffer
    x: Buffer
    kind: Activation
    writes: ClassVar = ("values", "scales")

    def widths(self) -> Any:
        yield self.x, 2 * self.values.width


@dataclass(frozen=True, kw_only=True)
class LinearQuant(Op):
    """`Linear` of an input that is quantized already."""

    out: Buffer
    values: Buffer
    scales: Buffer
    weight: Weight
    reads: ClassVar = ("values", "scales")

    def widths(self) -> Any:
        yield from zip((self.out, self.values), self.weight.shape, strict=True)


@dataclass(frozen=True, kw_only=True)
class LinearAct(Op):
    """`Linear`, then `Act`: in one launch for as few rows as that is faster for, else by way of `gate_up`."""

    out: Buffer
    gate_up: Buffer
    x: Buffer
    weight: Weight
    kind: Activation
    writes: ClassVar = ("out", "gate_up")

    def widths(self) -> Any:
        yield from zip((self.gate_up, self.x), self.weight.shape, strict=True)
        yield self.gate_up, 2 * self.out.width


class TritonRunner(Runner):
    """`Runner` of the rewritten program, for weights that `linear.LinearPacker` packed and steps with a plan."""

    def __init__(self, table: Table, program: Program, weights: Weights) -> None:
        super().__init__(table, fused(program, weights), weights, _HANDLERS)


def fused(program: Program, weights: Weights) -> Program:
    """The program with the operations of this module where the packed weights allow them."""
    joined = replace(program, ops=_with_quantized(program, weights))
    made = replace(joined, ops=_with_linear_act(joined, weights))
    made.check()
    return made


def _readers(program: Program) -> Mapping[Buffer, list[Op]]:
    readers: dict[Buffer, list[Op]] = {}
    for op in program.ops:
        for buffer in op.buffers((*op.reads, *op.changes)):
            readers.setdefault(buffer, []).append(op)
    return readers


def _with_quantized(program: Program, weights: Weights) -> tuple[Op, ...]:
    """Norms and activations whose results only matrices with quantized inputs read."""
    readers = _readers(program)
    ready: dict[Buffer, tuple[Buffer, Buffer]] = {}
    ops: list[Op] = []
    for op in program.ops:
        can_quantize = (isinstance(op, AddNorm) and op.kind == "rms") or (isinstance(op, Act) and op.gated)
        if isinstance(op, AddNorm | Act) and can_quantize and op.out is not program.output:
            dtype = _input_dtype(readers[op.out], weights)
            if dtype is not None:
                values = Buffer(f"{op.out.name}, quantized", op.out.width, dtype)
                scales = Buffer(f"{op.out.name}, scales", 1, torch.float32)
                ready[op.out] = values, scales
                if isinstance(op, AddNorm):
                    op = AddNormQuant(
                        values=values, scales=scales, residual=op.residual, x=op.x, weight=op.weight, eps=op.eps
                    )
                else:
                    op = ActQuant(values=values, scales=scales, x=op.x, kind=op.kind)
        elif isinstance(op, Linear) and op.x in ready:
            values, scales = ready[op.x]
            op = LinearQuant(out=op.out, values=values, scales=scales, weight=op.weight)
        ops.append(op)
    return tuple(ops)


def _input_dtype(readers: list[Op], weights: Weights) -> torch.dtype | None:
    """The type in which all readers take their input quantized; None: they do not, or not all alike."""
    dtypes = {
        linear.quantized_dtype(weights[reader.weight.name]) if isinstance(reader, Linear) else None
        for reader in readers
    }
    return dtypes.pop() if len(dtypes) == 1 else None


def _with_linear_act(program: Program, weights: Weights) -> tuple[Op, ...]:
    """An activation right behind the product that alone feeds it."""
    readers = _readers(program)
    ops: list[Op] = []
    for op in program.ops:
        before = ops[-1] if ops else None
        if (
            isinstance(op, Act)
            and op.gated
            and isinstance(before, Linear)
            and before.out is op.x
            and readers[op.x] == [op]
            and linear.can_fuse_act(weights[before.weight.name])
        ):
            ops[-1] = LinearAct(out=op.out, gate_up=op.x, x=before.x, weight=before.weight, kind=op.kind)
        else:
            ops.append(op)
    return tuple(ops)


def _add_norm_quant(table: Table, op: AddNormQuant, frame: Frame) -> None:
    elementwise.add_rms_norm_quant(
        frame[op.values], frame[op.scales], frame[op.residual], frame[op.x], frame.weight(op.weight), op.eps
    )


def _act_quant(table: Table, op: ActQuant, frame: Frame) -> None:
    elementwise.act_mul_quant(frame[op.values], frame[op.scales], frame[op.x], op.kind)


def _linear_quant(table: Table, op: LinearQuant, frame: Frame) -> None:
    linear.linear_quantized(frame[op.out], frame[op.values], frame[op.scales], frame.weight(op.weight))


def _linear_act(table: Table, op: LinearAct, frame: Frame) -> None:
    x, weight = frame[op.x], frame.weight(op.weight)
    if linear.has_fused_act(weight, len(x)):
        linear.linear_act(frame[op.out], x, weight, op.kind)
        return
    gate_up = frame[op.gate_up]
    linear.linear(gate_up, x, weight)
    table.act_mul(frame[op.out], gate_up, op.kind)


_HANDLERS: dict[type[Op], Handler] = {
    AddNormQuant: _add_norm_quant,
    ActQuant: _act_quant,
    LinearQuant: _linear_quant,
    LinearAct: _linear_act,
}
