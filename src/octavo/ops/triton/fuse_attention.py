"""Rotation and the cache's new keys, as parts of the attention behind them: in steps where every sequence decodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from octavo.ops.operands import Buffer
from octavo.ops.operations import Attend, CacheOp, Op, RopeWrite
from octavo.ops.program import Program
from octavo.ops.run import HANDLERS, Frame, Handler, Table, Weights, attend, rotation_of
from octavo.ops.triton.attention import Rotation, can_rotate, may_rotate


@dataclass(frozen=True, kw_only=True)
class RotatingAttend(CacheOp):
    """`RopeWrite` and the `Attend` that alone reads it: in one launch where the step's plan allows it."""

    write: RopeWrite
    attend: Attend
    reads: ClassVar = ("read",)
    writes: ClassVar = ("out",)
    changes: ClassVar = ("qkv",)

    @property
    def read(self) -> tuple[Buffer, ...]:
        return tuple(self.write.buffers(self.write.reads))

    @property
    def out(self) -> Buffer:
        return self.attend.out

    @property
    def qkv(self) -> Buffer:
        return self.attend.qkv

    def widths(self) -> Any:
        yield from self.write.widths()
        yield from self.attend.widths()


def with_rotating_attention(program: Program, weights: Weights) -> tuple[Op, ...]:
    """Attentions of which all that the rotation in front writes is their own."""
    ops: list[Op] = []
    for op in program.ops:
        write = ops[-1] if ops else None
        if (
            isinstance(op, Attend)
            and isinstance(write, RopeWrite)
            and write.qkv is op.qkv
            and write.cache == op.cache
            and write.heads == op.heads
            and may_rotate(op.heads)
            and not op.cache.of_encoder
            and op.qkv not in program.kept
            and program.readers[op.qkv][-2:] == [write, op]  # adapters may have changed it before
        ):
            ops[-1] = RotatingAttend(cache=op.cache, write=write, attend=op)
        else:
            ops.append(op)
    return tuple(ops)


def _rotating_attend(table: Table, op: RotatingAttend, frame: Frame) -> None:
    write = op.write
    plan = frame.attention_plan(op.attend.heads)
    if plan is None or not can_rotate(plan):
        HANDLERS[type(write)](table, write, frame)
        attend(table, op.attend, frame)
        return
    positions, cos_sin = rotation_of(write, frame)
    _, slots = frame.step.cache_groups[op.cache.group]
    rotation = Rotation(
        positions, slots, cos_sin, frame.weight(write.q_norm), frame.weight(write.k_norm), write.eps,
        write.norms_rotated, frame.weight(write.q_scales),
    )  # fmt: skip
    attend(table, op.attend, frame, rotation=rotation)


ATTENTION_HANDLERS: Mapping[type[Op], Handler] = {RotatingAttend: _rotating_attend}
