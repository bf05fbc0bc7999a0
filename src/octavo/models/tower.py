"""From a `TowerSpec` to what is loaded and run: a program from patches to rows of the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from octavo.models.builder import Builder
from octavo.models.params import Matrix, Param
from octavo.models.spec import DerivedSpec, ProjectorSpec, TowerSpec
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Act, Add, Embed, GivenRows, MergeRows
from octavo.ops.program import Program, program

#: Where the names of a tower's tensors begin, behind the renames of a layout.
ROOM: Final = "tower"
#: Of towers that have rotations and no table of positions.
MAX_PATCHES_A_SIDE: Final = 4096


@dataclass(frozen=True, eq=False)
class TowerDefinition:
    """A tower before its weights are there. Its sequences are pictures: all of their rows see each other."""

    spec: TowerSpec
    program: Program
    params: tuple[Param, ...]
    derived: dict[Weight, DerivedSpec]


def define_tower(spec: TowerSpec, width: int) -> TowerDefinition:
    """`width`: of the language model's rows. Raises ProgramError if the blocks of a family do not fit together."""
    build = Builder(spec.num_positions or MAX_PATCHES_A_SIDE, f"{ROOM}.layers", "v.blk", keeps=False)
    patches = Buffer("patches", spec.patch_values)
    build.ops.append(GivenRows(out=patches))
    matrix = Matrix(name=f"{ROOM}.patches", gguf="v.patch_embd", rows=spec.hidden_size, bias=spec.patch_bias)
    residual = build.linear(patches, f"{ROOM}.patches", [matrix], None)
    if spec.num_positions:
        _add_positions(build, spec, residual)
    if spec.pre_norm is not None:
        build.norm_in_place(residual, spec.pre_norm, f"{ROOM}.pre_norm", "v.pre_ln")
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
    build.top()
    rows = residual
    if spec.post_norm is not None:
        rows = build.norm(rows, spec.post_norm, f"{ROOM}.post_norm", "v.post_ln")
    if spec.merge > 1:
        merged = build.buffer("merged", spec.merge * spec.hidden_size)
        build.ops.append(MergeRows(out=merged, x=rows, count=spec.merge))
        rows = merged
    output = _projected(build, spec.projector, rows, width)
    derived = {weight: each for (each, _), weight in build.derived.items()}
    return TowerDefinition(spec, program(build.ops, output), tuple(build.params), derived)


def _add_positions(build: Builder, spec: TowerSpec, residual: Buffer) -> None:
    """With the vector of the class token, whose patch is all zeros, in the row of its position."""
    table = Matrix(name=f"{ROOM}.positions", gguf="v.position_embd", rows=spec.num_positions)
    weight = build.matrices(f"{ROOM}.positions", [table], spec.hidden_size, None, "embedding")
    if spec.has_class_token:
        build.params[-1] = replace(
            build.params[-1], first_row=build.declared(f"{ROOM}.class_token", "v.class_embd", spec.hidden_size)
        )
    out = build.buffer(f"{ROOM}.positions", spec.hidden_size)
    build.ops.append(Embed(out=out, weight=weight, index="positions"))
    build.ops.append(Add(residual=residual, x=out))


def _projected(build: Builder, spec: ProjectorSpec, rows: Buffer, width: int) -> Buffer:
    name = f"{ROOM}.projector"
    if not spec.inner_size:
        return build.linear(rows, name, [Matrix(name=name, gguf="mm.0", rows=width, bias=spec.bias)], None)
    up = Matrix(name=f"{name}.up", gguf="mm.0", rows=spec.inner_size, bias=spec.bias)
    inner = build.linear(rows, f"{name}.up", [up], None)
    act = build.buffer(f"{name}.act", spec.inner_size)
    build.ops.append(Act(out=act, x=inner, kind=spec.activation, gated=False))
    down = Matrix(name=f"{name}.down", gguf="mm.2", rows=width, bias=spec.bias)
    return build.linear(act, f"{name}.down", [down], None)
