"""Blocks whose result is multiplied by the hyperbolic tangent of one number."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.models.blocks import Block
from octavo.models.builder import Builder
from octavo.models.params import Matrix
from octavo.ops.operands import Buffer
from octavo.ops.stream_operations import Multiply


@dataclass(frozen=True, kw_only=True)
class Gated:
    """`name`: of the number, [1]."""

    block: Block
    name: str

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        out = self.block.emit(build, x)
        number = Matrix(name=self.name, gguf=self.name, rows=1)
        build.ops.append(Multiply(x=out, factors=build.made(number, lambda parts: parts[0].tanh())))
        return out
