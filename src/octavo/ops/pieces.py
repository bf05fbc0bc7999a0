"""A program as several, so that other work may come between them.

    embed | norm qkv attend out add | norm up act down add | norm qkv attend ...
                                    ^ a cut: behind it the residual is all that is still read

A piece ends behind a sum that an attention or an activation led to, where nothing but the sum is read any more.
Whatever blocks a model is made of, its layers are cut there, and the pieces compute what the whole does, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from octavo.ops.operands import Buffer
from octavo.ops.operations import (
    Act,
    Add,
    AddNorm,
    Attend,
    CacheOp,
    GatherRotation,
    GivenRows,
    KeepRows,
    MergeRows,
    Norm,
    Op,
)
from octavo.ops.program import Program, program


@dataclass(frozen=True)
class Piece:
    program: Program
    caches: tuple[int, ...] = ()  # of its caches the numbers that they have in the whole


#: "to the last attention": of a program that is asked for some of its rows only, which are all that goes on behind it.
Cut = Literal["all layers", "to the last attention"]


def pieces(whole: Program, cut: Cut) -> list[Piece]:
    """Each piece but the first begins with the rows that the one before it gave. All are of as many rows as the whole:
    there is no cut behind operations that make fewer of them. A whole that has no cut has no numbers of caches."""
    ops = [part for op in whole.ops for part in _apart(op)]
    if any(isinstance(op, CacheOp) and op.cache.of_encoder for op in ops):
        return [Piece(whole)]
    last = len(ops) - 1
    if cut == "to the last attention":
        last = max((at for at, op in enumerate(ops) if op.needs_all_rows), default=0)
    last = min([last, *(at for at, op in enumerate(ops) if isinstance(op, MergeRows))])
    gathered = [op for op in ops if isinstance(op, GatherRotation)]
    lives = Program(tuple(ops), whole.output).lives
    made: list[Piece] = []
    given: Buffer | None = None
    first = 0
    for at in range(1, last + 1):
        has_worked = any(isinstance(op, Attend | Act) for op in ops[first:at])
        if has_worked and (residual := _only_sum(ops[at - 1], at, lives, gathered)) is not None:
            made.append(_piece(given, ops[first:at], residual, gathered))
            first, given = at, residual
    if not made:
        return [Piece(whole)]
    return [*made, _piece(given, ops[first:], whole.output, gathered)]


def _apart(op: Op) -> Iterator[Op]:
    """Undo what `program` does."""
    if isinstance(op, AddNorm):
        yield Add(residual=op.residual, x=op.x)
        yield Norm(out=op.out, x=op.residual, weight=op.weight, eps=op.eps, kind=op.kind, bias=op.bias)
    elif not isinstance(op, KeepRows):
        yield op


def _only_sum(
    op: Op, at: int, lives: dict[Buffer, tuple[int, int]], gathered: Sequence[GatherRotation]
) -> Buffer | None:
    """What `op`, in front of operation `at`, adds to, if no other buffer lives on; rotations are gathered anew."""
    again = {buffer for each in gathered for buffer in (each.out, each.places)}
    live = [buffer for buffer, (first, end) in lives.items() if first < at <= end and buffer not in again]
    changed = list(op.buffers(op.changes))
    return live[0] if len(live) == 1 and changed == live else None


def _piece(given: Buffer | None, ops: Sequence[Op], output: Buffer, gathered: Sequence[GatherRotation]) -> Piece:
    start: list[Op] = []
    if given is not None:
        read = {buffer for op in ops for buffer in op.buffers(op.reads)}
        start = [GivenRows(out=given), *(each for each in gathered if each.out in read and each not in ops)]
    numbers = sorted({op.cache.index for op in ops if isinstance(op, CacheOp)})
    numbered = [
        replace(op, cache=replace(op.cache, index=numbers.index(op.cache.index))) if isinstance(op, CacheOp) else op
        for op in (*start, *ops)
    ]
    return Piece(program(numbered, output), tuple(numbers))
