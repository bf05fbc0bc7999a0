"""Pictures whose rows layers of a decoder see beside the text: the tower that encodes all tiles of one together.

tiles   | patches: one matrix, and what follows from a tile's place and from the picture's grid of tiles
        v
rows    | class, patches of each tile, then those of the tiles that the picture has not, then zeros
        | norm; layers; norm; what follows from the tile's place; layers with gates
        v
rows    | the last layer's beside those of some inner ones, through one matrix: the tokens' keys and values come of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from torch import Tensor

from octavo.models.blocks import Layer
from octavo.models.builder import Builder
from octavo.models.params import Matrix, Param, TensorDecl
from octavo.models.spec import NormSpec, PicturesSpec
from octavo.models.tower import ROOM
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import GivenRows
from octavo.ops.program import Program, program

#: Rows of a tile are filled up with zeros to a multiple of this, which the others see.
_ROUND: Final = 8


@dataclass(frozen=True, eq=False)
class PicturesDefinition:
    """Before the weights are there. Programs from given rows to rows."""

    spec: PicturesSpec
    patches: Program
    pre_norm: Program
    layers: tuple[Program, ...]  # parts of the layers: behind each but the last its rows are taken
    post_norm: Program
    global_layers: Program
    projector: Program
    tile_rows: Weight  # float32 [ratios * tiles * rows of a tile, hidden size]: added to patches, zeros in class rows
    tile_marks: Weight  # float32 [ratios * tiles, hidden size]: added to all rows of a tile between the layers
    params: tuple[Param, ...]

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.patches, self.pre_norm, *self.layers, self.post_norm, self.global_layers, self.projector


def num_padded(spec: PicturesSpec) -> int:
    """Zero rows behind those of a tile."""
    return -spec.tile_rows % _ROUND


def define_pictures(spec: PicturesSpec, width: int) -> PicturesDefinition:
    """`width`: of the language model's rows. Raises ProgramError if the blocks of a family do not fit together."""
    rows = Buffer("rows", spec.hidden_size)
    build = Builder(spec.tile_rows, f"{ROOM}.layers", "v.blk", keeps=False)
    values = Buffer("patches", spec.patch_values)
    build.ops.append(GivenRows(out=values))
    matrix = Matrix(name=f"{ROOM}.patches", gguf="v.patch_embd", rows=spec.hidden_size)
    patches = program(build.ops, build.linear(values, matrix.name, [matrix], None))
    build.cut()
    pre_norm = _norm(build, rows, spec.outer_norm, "pre_norm")
    ends = [number + 1 for number in spec.taken]
    parts = _layers(build, rows, spec.layers, [*ends, *([len(spec.layers)] if len(spec.layers) not in ends else [])])
    post_norm = _norm(build, rows, spec.outer_norm, "post_norm")
    late = Builder(spec.tile_rows, f"{ROOM}.global_layers", "v.global_blk", keeps=False)
    (global_layers,) = _layers(late, rows, spec.global_layers, [len(spec.global_layers)])
    joined = Buffer("joined", (1 + len(spec.taken)) * spec.hidden_size)
    build.ops.append(GivenRows(out=joined))
    last = Matrix(name=f"{ROOM}.projector", gguf="mm.0", rows=width, bias=True)
    projector = program(build.ops, build.linear(joined, last.name, [last], None))
    tile_rows, tile_marks = _tile_rows(spec), _tile_marks(spec)
    return PicturesDefinition(
        spec,
        patches,
        pre_norm,
        parts,
        post_norm,
        global_layers,
        projector,
        tile_rows.weight,
        tile_marks.weight,
        (*build.params, *late.params, tile_rows, tile_marks),
    )


def _norm(build: Builder, rows: Buffer, norm: NormSpec, name: str) -> Program:
    build.ops.append(GivenRows(out=rows))
    out = build.norm(rows, norm, f"{ROOM}.{name}", f"v.{name}")
    return program(build.cut(), out)


def _layers(build: Builder, rows: Buffer, layers: Sequence[Layer], ends: Sequence[int]) -> tuple[Program, ...]:
    """Programs that end behind so many layers."""
    parts = []
    build.ops.append(GivenRows(out=rows))
    for number, layer in enumerate(layers):
        build.layer(number)
        layer.emit(build, rows)
        if number + 1 in ends:
            parts.append(program(build.cut(), rows))
            build.ops.append(GivenRows(out=rows))
    build.cut()
    build.top()
    return tuple(parts)


def _tile_rows(spec: PicturesSpec) -> Param:
    tiles, rows, hidden = spec.num_tiles, spec.tile_rows, spec.hidden_size
    return Param(
        weight=Weight(f"{ROOM}.tile_rows", (spec.num_ratios * tiles * rows, hidden)),
        parts=(
            _declared("class_token", hidden),
            _declared("positions", rows, hidden),
            _declared("positions_gate", 1),
            _declared("tile_positions.weight", spec.num_ratios, tiles * rows * hidden),
            _declared("tile_starts_gate", 1),
            _declared("tile_starts.weight", spec.num_ratios, tiles * hidden),
        ),
        packing="vector",
        made=partial(_composed, tiles, rows, hidden),
    )


def _composed(tiles: int, rows: int, hidden: int, parts: Sequence[Tensor]) -> Tensor:
    class_token, positions, position_gate, tile_positions, start_gate, starts = parts
    open_by = position_gate.tanh()
    found = open_by * tile_positions.view(-1, tiles, rows, hidden) + (1 - open_by) * positions
    found[:, :, 0] += class_token
    found[:, :, 1:] += start_gate.tanh() * starts.view(-1, tiles, 1, hidden)
    return found.view(-1, hidden)


def _tile_marks(spec: PicturesSpec) -> Param:
    tiles, hidden = spec.num_tiles, spec.hidden_size
    return Param(
        weight=Weight(f"{ROOM}.tile_marks", (spec.num_ratios * tiles, hidden)),
        parts=(_declared("tile_marks_gate", 1), _declared("tile_marks.weight", spec.num_ratios, tiles * hidden)),
        packing="vector",
        made=partial(_marks, hidden),
    )


def _marks(hidden: int, parts: Sequence[Tensor]) -> Tensor:
    return (parts[0].tanh() * parts[1]).view(-1, hidden)


def _declared(name: str, *shape: int) -> TensorDecl:
    return TensorDecl(
        name=f"{ROOM}.{name}", gguf=f"v.{name}", shape=shape, role="bias" if len(shape) == 1 else "matrix"
    )
