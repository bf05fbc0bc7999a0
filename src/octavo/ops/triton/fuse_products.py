"""What stands around a product, as a part of it: for few rows, where each launch counts.

    Linear, Act                becomes    LinearAct       one launch instead of two
    Norm, Linear[Act]                     JoinedNorm      one instead of two
    Linear, AddNorm, Linear[Act]          JoinedNorm      two instead of three

Of the last, the first product adds to the residual, each element by one program, and the second takes the residual's
norm with it. So the norm is that of the residual as it is rounded, where `AddNorm` takes it of the sum before; the
first product's result, in return, is not rounded by itself. Other bits, as near to the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Act, Activation, AddNorm, Linear, Norm, Op
from octavo.ops.program import Program
from octavo.ops.run import HANDLERS, Frame, Handler, Table, Weights
from octavo.ops.triton import linear
from octavo.ops.triton.linear_dense import InputNorm


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


@dataclass(frozen=True, kw_only=True)
class JoinedNorm(Op):
    """`Norm` and the product that alone reads it; or an `AddNorm` between the product that makes what it adds, `first`,
    and the one that alone reads it. Where they cannot be joined, one by one."""

    first: Linear | None
    norm: Norm | AddNorm
    second: Linear | LinearAct
    reads: ClassVar = ("read",)
    writes: ClassVar = ("written",)
    changes: ClassVar = ("changed",)

    @property
    def parts(self) -> tuple[Op, ...]:
        return (self.norm, self.second) if self.first is None else (self.first, self.norm, self.second)

    @property
    def read(self) -> Buffer:
        return self.norm.x if self.first is None else self.first.x

    @property
    def written(self) -> tuple[Buffer, ...]:
        return tuple(buffer for op in self.parts for buffer in op.buffers(op.writes))

    @property
    def changed(self) -> tuple[Buffer, ...]:
        return (self.norm.residual,) if isinstance(self.norm, AddNorm) else ()

    def widths(self) -> Any:
        for op in self.parts:
            yield from op.widths()


def with_linear_act(program: Program, weights: Weights) -> tuple[Op, ...]:
    """An activation right behind the product that alone feeds it."""
    ops: list[Op] = []
    for op in program.ops:
        before = ops[-1] if ops else None
        if (
            isinstance(op, Act)
            and op.gated
            and isinstance(before, Linear)
            and before.out is op.x
            and program.readers[op.x] == [op]
            and linear.can_fuse_act(weights[before.weight.name])
        ):
            ops[-1] = LinearAct(out=op.out, gate_up=op.x, x=before.x, weight=before.weight, kind=op.kind)
        else:
            ops.append(op)
    return tuple(ops)


def with_joined_norms(program: Program, weights: Weights) -> tuple[Op, ...]:
    """Norms right in front of the product that alone reads them, and right behind the one that feeds them."""

    def is_joinable(op: Op | None) -> bool:
        return isinstance(op, Linear | LinearAct) and linear.can_join(weights[op.weight.name], 1)

    ops: list[Op] = []
    for op in program.ops:
        norm, before = (ops[-at] if len(ops) >= at else None for at in (1, 2))
        if (
            isinstance(op, Linear | LinearAct)
            and is_joinable(op)
            and isinstance(norm, Norm | AddNorm)
            and norm.kind == "rms"
            and norm.out is op.x
            and norm.out is not program.output
            and program.readers[op.x] == [op]
        ):
            if isinstance(norm, Norm):
                ops[-1] = JoinedNorm(first=None, norm=norm, second=op)
                continue
            if (
                isinstance(before, Linear)
                and is_joinable(before)
                and before.out is norm.x
                and program.readers[norm.x] == [norm]
            ):
                ops[-2:] = [JoinedNorm(first=before, norm=norm, second=op)]
                continue
        ops.append(op)
    return tuple(ops)


def _linear_act(table: Table, op: LinearAct, frame: Frame) -> None:
    x, weight = frame[op.x], frame.weight(op.weight)
    if linear.has_fused_act(weight, len(x)):
        linear.linear_act(frame[op.out], x, weight, op.kind)
        return
    gate_up = frame[op.gate_up]
    linear.linear(gate_up, x, weight)
    table.act_mul(frame[op.out], gate_up, op.kind)


def _joined_norm(table: Table, op: JoinedNorm, frame: Frame) -> None:
    first, norm, second = op.first, op.norm, op.second
    x, products = frame[op.read], [product for product in (first, second) if product is not None]
    if not all(linear.can_join(frame.weight(product.weight), len(x), x.dtype) for product in products):
        for part in op.parts:
            _ONE_BY_ONE[type(part)](table, part, frame)
        return
    if first is not None and isinstance(norm, AddNorm):
        x = frame[norm.residual]
        linear.linear_joined(x, frame[first.x], frame.weight(first.weight), adds=True)
    kind = second.kind if isinstance(second, LinearAct) else ""
    input_norm = InputNorm(frame.weight(norm.weight), norm.eps)
    linear.linear_joined(frame[second.out], x, frame.weight(second.weight), norm=input_norm, act=kind)


_ONE_BY_ONE: Mapping[type[Op], Handler] = {**HANDLERS, LinearAct: _linear_act}
PRODUCT_HANDLERS: Mapping[type[Op], Handler] = {LinearAct: _linear_act, JoinedNorm: _joined_norm}
