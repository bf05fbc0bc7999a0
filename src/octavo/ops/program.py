"""A model as data: operations over buffers, made once from a configuration and checked before anything is loaded.

`run` is the meaning of a program, call by call; a device may translate the list to records of its own (`cpu.program`)
or rewrite it (`triton.fuse`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from octavo.ops.operands import Buffer, Cache, State
from octavo.ops.operations import (
    Add,
    AddNorm,
    Attend,
    CacheOp,
    CausalConv,
    Experts,
    HeadLinear,
    KeepRows,
    LatentAttend,
    Linear,
    MergeRows,
    Norm,
    Op,
    SelectiveScan,
    StateOp,
)


class ProgramError(Exception):
    """A program that cannot be run: a mistake in a family's file or in a rewrite, never the user's."""


@dataclass(frozen=True, eq=False)
class Program:
    """The operations of a step in order, the buffer that holds its result at the end, and those that beside it keep
    what was written to them until the next step."""

    ops: tuple[Op, ...]
    output: Buffer
    kept: tuple[Buffer, ...] = ()

    @cached_property
    def lives(self) -> dict[Buffer, tuple[int, int]]:
        """Of each buffer, in the order of writing: the operation that writes it and the last one that uses it. What
        the output holds is used behind the end."""
        lives: dict[Buffer, tuple[int, int]] = {}
        for at, op in enumerate(self.ops):
            for buffer in op.buffers(op.writes):
                lives[buffer] = at, at
            for buffer in op.buffers((*op.reads, *op.changes)):
                lives[buffer] = lives[buffer][0], at
        for buffer in (self.output, *self.kept):
            lives[buffer] = lives[buffer][0], len(self.ops)
        return lives

    @cached_property
    def caches(self) -> tuple[Cache, ...]:
        """By their index."""
        found = {op.cache.index: op.cache for op in self.ops if isinstance(op, CacheOp)}
        return tuple(found[index] for index in sorted(found))

    @cached_property
    def states(self) -> tuple[State, ...]:
        """By their index."""
        found = {op.state.index: op.state for op in self.ops if isinstance(op, StateOp)}
        return tuple(found[index] for index in sorted(found))

    @property
    def matrix_ops(self) -> int:
        """Sums and products of its matrices for one row."""
        values = 0
        for op in self.ops:
            if isinstance(op, Linear | HeadLinear | CausalConv):
                values += math.prod(op.weight.shape)
            elif isinstance(op, SelectiveScan) and len(op.a_log.shape) == 2:
                values += math.prod(op.a_log.shape)
            elif isinstance(op, Experts):
                values += op.top_k * sum(math.prod(each.shape[1:]) for each in (op.gate_up_weight, op.down_weight))
        return 2 * values

    @property
    def attention_ops(self) -> int:
        """Sums and products of its attentions for one key that one row sees."""
        attends = (op for op in self.ops if isinstance(op, Attend | LatentAttend))
        return sum(op.cache.heads.ops_per_key for op in attends)

    def check(self) -> None:
        """Prove that the widths fit, that each buffer is written once and before it is used, and that no operation
        behind `KeepRows` reads rows that were left behind. Raises `ProgramError`."""
        written: set[Buffer] = set()
        stale: set[Buffer] = set()
        for at, op in enumerate(self.ops):
            where = f"operation {at}, {type(op).__name__}"
            for buffer in op.buffers((*op.reads, *op.changes)):
                if buffer not in written:
                    raise ProgramError(f"{where}: {buffer.name} is used before it is written")
                if buffer in stale:
                    raise ProgramError(f"{where}: {buffer.name} has rows that were not kept")
            for buffer in op.buffers(op.writes):
                if buffer in written:
                    raise ProgramError(f"{where}: {buffer.name} has been written by another operation")
                written.add(buffer)
            for buffer, width in op.widths():
                if buffer.width != width:
                    raise ProgramError(f"{where}: {buffer.name} is {buffer.width} wide, not {width}")
            if isinstance(op, KeepRows):
                stale = written - set(op.rows)
            elif isinstance(op, MergeRows):
                stale = written - {op.out}
            elif stale and op.needs_all_rows:
                raise ProgramError(f"{where}: it needs the rows that were not kept")
        if self.output not in written or self.output in stale:
            raise ProgramError(f"the result, {self.output.name}, is not there at the end")
        if [cache.index for cache in self.caches] != list(range(len(self.caches))):
            raise ProgramError("the caches are not numbered from 0 on")
        if [state.index for state in self.states] != list(range(len(self.states))):
            raise ProgramError("the states are not numbered from 0 on")


def program(ops: Sequence[Op], output: Buffer) -> Program:
    """The program of operations as blocks write them: sums joined with the norms behind them, and rows that nobody
    wants dropped as soon as no other row depends on them."""
    made = Program(_with_kept_rows(Program(tuple(_joined(ops)), output)), output)
    made.check()
    return made


def _joined(ops: Sequence[Op]) -> Iterator[Op]:
    """`Add` and a `Norm` of its sum right behind it become one pass over the row."""
    before: Op | None = None
    for op in ops:
        if isinstance(before, Add) and isinstance(op, Norm) and op.x is before.residual:
            before = AddNorm(
                out=op.out, residual=op.x, x=before.x, weight=op.weight, eps=op.eps, kind=op.kind, bias=op.bias
            )
            continue
        if before is not None:
            yield before
        before = op
    if before is not None:
        yield before


def _with_kept_rows(made: Program) -> tuple[Op, ...]:
    """The ops, with `KeepRows` of all that is in use behind the last one that needs all rows."""
    last = max((at for at, op in enumerate(made.ops) if op.needs_all_rows), default=0)
    live = tuple(buffer for buffer, (first, end) in made.lives.items() if first <= last < end)
    return (*made.ops[: last + 1], KeepRows(rows=live), *made.ops[last + 1 :])
