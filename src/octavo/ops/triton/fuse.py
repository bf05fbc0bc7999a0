"""A program rewritten for a GPU: operations that run better as one kernel.

A matrix whose input is quantized gets it from the norm or the activation in front, which has the row at hand. What else
is joined: `fuse_products`, `fuse_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Act, Activation, AddNorm, Linear, Op
from octavo.ops.program import Program
from octavo.ops.run import Frame, Handler, Runner, Table, Weights
from octavo.ops.triton import elementwise, linear
from octavo.ops.triton.fuse_attention import ATTENTION_HANDLERS, with_rotating_attention
from octavo.ops.triton.fuse_products import PRODUCT_HANDLERS, with_joined_norms, with_linear_act
from octavo.ops.triton.switches import is_on


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


class TritonRunner(Runner):
    """`Runner` of the rewritten program, for weights that `linear.LinearPacker` packed and steps with a plan."""

    def __init__(self, table: Table, program: Program, weights: Weights, *, batch_invariant: bool = False) -> None:
        super().__init__(table, fused(program, weights, batch_invariant=batch_invariant), weights, _HANDLERS)


def fused(program: Program, weights: Weights, *, batch_invariant: bool = False) -> Program:
    """The program with joined operations where the packed weights allow them. `batch_invariant`: not with those that
    some steps compute in one form and some in another."""
    rewrites = [_with_quantized, with_linear_act]
    if is_on("joined_norms") and not batch_invariant:
        rewrites.append(with_joined_norms)
    if is_on("joined_rotation") and not batch_invariant:
        rewrites.append(with_rotating_attention)
    for rewrite in rewrites:
        program = replace(program, ops=rewrite(program, weights))
    program.check()
    return program


def _with_quantized(program: Program, weights: Weights) -> tuple[Op, ...]:
    """Norms and activations whose results only matrices with quantized inputs read."""
    ready: dict[Buffer, tuple[Buffer, Buffer]] = {}
    ops: list[Op] = []
    for op in program.ops:
        can_quantize = (isinstance(op, AddNorm) and op.kind == "rms") or (isinstance(op, Act) and op.gated)
        if isinstance(op, AddNorm | Act) and can_quantize and op.out is not program.output:
            dtype = _input_dtype(program.readers[op.out], weights)
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


def _add_norm_quant(table: Table, op: AddNormQuant, frame: Frame) -> None:
    elementwise.add_rms_norm_quant(
        frame[op.values], frame[op.scales], frame[op.residual], frame[op.x], frame.weight(op.weight), op.eps
    )


def _act_quant(table: Table, op: ActQuant, frame: Frame) -> None:
    elementwise.act_mul_quant(frame[op.values], frame[op.scales], frame[op.x], op.kind)


def _linear_quant(table: Table, op: LinearQuant, frame: Frame) -> None:
    linear.linear_quantized(frame[op.out], frame[op.values], frame[op.scales], frame.weight(op.weight))


_HANDLERS: dict[type[Op], Handler] = {
    AddNormQuant: _add_norm_quant,
    ActQuant: _act_quant,
    LinearQuant: _linear_quant,
    **PRODUCT_HANDLERS,
    **ATTENTION_HANDLERS,
}
