"""Operations of models whose tokens have several streams, or inputs of their own for each layer (Gemma 3n and 4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Activation, Op

#: As in csrc/cpu/kernels/altup.h.
MAX_STREAMS: Final = 8
_Widths = Iterator[tuple[Buffer, int]]


@dataclass(frozen=True, kw_only=True)
class Multiply(Op):
    """x *= factors, float32: [width], a column each, or [1]."""

    x: Buffer
    factors: Weight
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        (size,) = self.factors.shape
        yield self.x, self.x.width if size == 1 else size


@dataclass(frozen=True, kw_only=True)
class MatchRms(Op):
    """Rows of x get the root mean squares of those of `to`; see `reference_streams.match_rms_`."""

    x: Buffer
    to: Buffer
    reads: ClassVar = ("to",)
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        yield self.x, self.to.width


@dataclass(frozen=True, kw_only=True)
class CutGates(Op):
    """Of the first `width` columns of a row: what lies `deviations` standard deviations above their mean, less that.
    The others become 0."""

    x: Buffer
    width: int
    deviations: float
    reads: ClassVar = ()
    writes: ClassVar = ()
    changes: ClassVar = ("x",)

    def widths(self) -> _Widths:
        yield self.x, max(self.x.width, self.width)


@dataclass(frozen=True, kw_only=True)
class ActTimes(Op):
    """out = act(x) * the columns of y from `first` on."""

    out: Buffer
    x: Buffer
    y: Buffer
    first: int
    kind: Activation
    reads: ClassVar = ("x", "y")

    def widths(self) -> _Widths:
        yield self.x, self.out.width
        yield self.y, max(self.y.width, self.first + self.out.width)


@dataclass(frozen=True, kw_only=True)
class AltUpPredict(Op):
    """With t = tanh(scores): stream j += the sum over i of (row j * n + i of `coefs`) . t * stream i.

    `scores` float32 [rows, n]; `coefs` float32 [n * n, n].
    """

    streams: tuple[Buffer, ...]
    scores: Buffer
    coefs: Weight
    reads: ClassVar = ("scores",)
    writes: ClassVar = ()
    changes: ClassVar = ("streams",)

    def widths(self) -> _Widths:
        yield self.scores, self.coefs.shape[1]
        yield from ((stream, self.streams[0].width) for stream in self.streams)


@dataclass(frozen=True, kw_only=True)
class AltUpCorrect(Op):
    """With t = tanh(scores): stream j += (1 + row j of `coefs` . t) * (activated - stream `active`, as it was).

    out = the new stream `active`, times `scale` [width] if there is one. `coefs` float32 [n, n].
    """

    out: Buffer
    streams: tuple[Buffer, ...]
    activated: Buffer
    scores: Buffer
    coefs: Weight
    active: int
    scale: Weight | None = None
    reads: ClassVar = ("activated", "scores")
    changes: ClassVar = ("streams",)

    def widths(self) -> _Widths:
        yield self.scores, self.coefs.shape[1]
        yield from ((each, self.out.width) for each in (self.activated, *self.streams))
