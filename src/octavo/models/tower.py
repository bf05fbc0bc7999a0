"""From a `TowerSpec` to what is loaded and run: a program from patches to rows of the language model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from octavo.models.builder import Builder
from octavo.models.codes import CodesDefinition, define_codes
from octavo.models.encoder import FramesSpec, convolutions
from octavo.models.params import Matrix, Param
from octavo.models.resampler import Resampler, define_resampler
from octavo.models.spec import DerivedSpec, InnerMerger, ProjectorSpec, QueriesSpec, TowerSpec
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import Act, Add, CacheOp, Embed, GivenRows, MergeRows
from octavo.ops.program import Program, program

#: Where the names of a tower's tensors begin, behind the renames of a layout.
ROOM: Final = "tower"
CODES: Final = f"{ROOM}.codes"
#: Of towers that have rotations and no table of positions.
MAX_PATCHES_A_SIDE: Final = 4096


@dataclass(frozen=True, eq=False)
class Stage:
    """A part of a tower, from the rows of the stage before it."""

    program: Program
    is_windowed: bool = False  # its sequences are parts of pictures
    is_joined: bool = False  # its rows are also among those that the last stage reads beside each other
    window: int = 0  # its sequences are so many rows each; 0: not all alike
    mean: Program | None = None  # from what it reads to what is added to what it gives
    divisor: int = 1  # it gives a row for so many
    tap: Program | None = None  # from what it gives to rows that the language model adds behind one of its layers


@dataclass(frozen=True, eq=False)
class QueriesDefinition:
    """`keys`: from the rows of the last stage to the caches that `program` reads as those of an encoder. `program`: to
    rows of the language model, of sequences of which a picture has one."""

    keys: Program
    program: Program


@dataclass(frozen=True, eq=False)
class TowerDefinition:
    """A tower before its weights are there. Its sequences are pictures, all of whose rows see each other, but for
    stages of windows."""

    spec: TowerSpec
    stages: tuple[Stage, ...]
    params: tuple[Param, ...]
    derived: dict[Weight, DerivedSpec]
    position_table: Weight | None  # of positions that are interpolated, float32 [num_positions, hidden size]
    newline: Weight | None  # float32 [width of the language model's rows]
    separators: Weight | None = None  # float32 [their number * width of merged rows]
    projection: Program | None = None  # of a model with separators: from merged rows in order to those of the model
    resampler: Resampler | None = None
    queries: QueriesDefinition | None = None
    codes: CodesDefinition | None = None

    @property
    def programs(self) -> tuple[Program, ...]:
        found = [each for stage in self.stages for each in (stage.program, stage.tap, stage.mean)]
        found += [self.projection, *(() if self.resampler is None else self.resampler.programs)]
        if self.queries is not None:
            found += [self.queries.keys, self.queries.program]
        if self.codes is not None:
            found.append(self.codes.program)
        return tuple(each for each in found if each is not None)


def define_tower(spec: TowerSpec, width: int, embedding: Weight) -> TowerDefinition:
    """`width`: of the language model's rows; `embedding`: its table. Raises ProgramError if the blocks of a family do
    not fit together."""
    if spec.sound is not None:
        return _define_hearing(spec, spec.sound, width)
    build = Builder(spec.num_positions or MAX_PATCHES_A_SIDE, f"{ROOM}.layers", "v.blk", keeps=False)
    if spec.codes is not None:
        codes = define_codes(build, CODES, spec.codes, embedding)
        return TowerDefinition(spec, (), tuple(build.params), {}, None, None, codes=codes)
    patches = Buffer("patches", spec.patch_values)
    build.ops.append(GivenRows(out=patches))
    has_bias = spec.patch_bias and not spec.has_class_token
    matrix = Matrix(name=f"{ROOM}.patches", gguf="v.patch_embd", rows=spec.hidden_size, bias=has_bias)
    residual = build.linear(patches, f"{ROOM}.patches", [matrix], None)
    if spec.patch_norm is not None:
        build.norm_in_place(residual, spec.patch_norm, f"{ROOM}.patch_norm", "v.norm_embd")
    stages: list[Stage] = []
    table = None
    if spec.is_interpolated:
        table = build.table(f"{ROOM}.positions", "v.position_embd", (spec.num_positions, spec.hidden_size))
        stages.append(Stage(_cut(build, residual)))
    elif spec.num_positions:
        _add_positions(build, spec, residual)
    if spec.pre_norm is not None:
        build.norm_in_place(residual, spec.pre_norm, f"{ROOM}.pre_norm", "v.pre_ln")
    stages += _layer_stages(build, spec, residual, width)
    if spec.joined:
        build.cut()
        residual = Buffer("joined", len(spec.joined) * spec.hidden_size)
        build.ops.append(GivenRows(out=residual))
    output = _merged_rows(build, spec, residual)
    separators = projection = newline = resampler = None
    if spec.resampler is not None:
        output, resampler = define_resampler(build, spec.resampler, output, width)
    elif spec.num_separators:
        names = [f"{ROOM}.separators.{number}" for number in range(spec.num_separators)]
        declared = [Matrix(name=name, gguf=name, rows=output.width) for name in names]
        separators = build.vector(declared, f"{ROOM}.separators", "", "bias")
        head, ordered = build.cut(), Buffer("ordered", output.width)
        build.ops.append(GivenRows(out=ordered))
        made = _head(build, spec, ordered, width)
        projection = program(build.cut(), made)
        build.ops += head
    else:
        output = _head(build, spec, output, width)
    if spec.has_newline:
        newline = build.vector(
            [Matrix(name=f"{ROOM}.newline", gguf="model.image_newline", rows=width)], f"{ROOM}.newline", "", "bias"
        )
    stages.append(Stage(program(build.ops, output), len(spec.layers) - 1 in spec.windowed))
    builders, queries = [build], None
    if spec.queries is not None:
        builders.append(Builder(spec.queries.number, f"{ROOM}.queries.layers", "v.queries.blk", keeps=False))
        queries = _define_queries(builders[-1], spec, spec.queries, width)
    derived = {weight: each for builder in builders for (each, _), weight in builder.derived.items()}
    params = tuple(param for builder in builders for param in builder.params)
    return TowerDefinition(
        spec, tuple(stages), params, derived, table, newline, separators, projection, resampler, queries
    )


def _layer_stages(build: Builder, spec: TowerSpec, residual: Buffer, width: int) -> Iterator[Stage]:
    """All layers; what is behind the last stage is left to the next one."""
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
        build.top()
        is_windowed = number in spec.windowed
        if number + 1 in spec.joined:
            yield Stage(_cut(build, residual), is_windowed, is_joined=True)
        elif number in spec.taps:
            ops = _cut(build, residual)
            tap = _tap(build, spec, residual, width, spec.taps.index(number))
            yield Stage(ops, is_windowed, tap=tap)
        elif number + 1 < len(spec.layers) and (number + 1 in spec.windowed) != is_windowed:
            yield Stage(_cut(build, residual), is_windowed)
        if spec.inner is not None and number == spec.inner.behind:
            yield Stage(_cut(build, residual))
            yield from _inner_stages(build, spec.inner, residual)


def _define_queries(build: Builder, tower: TowerSpec, spec: QueriesSpec, width: int) -> QueriesDefinition:
    build.encoder_rows = Buffer("picture", tower.hidden_size)
    name = f"{ROOM}.queries.table"
    table = Matrix(name=name, gguf="v.queries", rows=spec.number)
    weight = build.matrices(name, [table], spec.hidden_size, None, "embedding")
    rows = build.buffer("queries", spec.hidden_size)
    build.ops.append(Embed(out=rows, weight=weight, index="positions"))
    residual = build.norm(rows, spec.norm, f"{ROOM}.queries.norm", "v.queries_norm")
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
    build.top()
    output = _projected(build, tower.projector, residual, width, f"{ROOM}.projector", spec.hidden_size)
    ops = [
        replace(op, cache=replace(op.cache, group=1)) if isinstance(op, CacheOp) and op.cache.of_encoder else op
        for op in build.ops
    ]
    return QueriesDefinition(program(build.crossing, build.encoder_rows), program(ops, output))


def _define_hearing(spec: TowerSpec, sound: FramesSpec, width: int) -> TowerDefinition:
    """Three stages. What a stage reads is made of the rows of the one before it (`worker/sounds.py`).

    three frames side by side --first convolution--> a row for each frame
    three of these, every other --second convolution, positions, layers, norm--> a row for each two frames
    `merge` of these --projector--> a row of the language model
    """
    build = Builder(spec.num_positions, f"{ROOM}.layers", "a.blk", keeps=False)
    residual = Buffer("residual", spec.hidden_size)
    first = program(convolutions(build, sound, residual, ROOM, "a"), residual)
    _add_positions(build, spec, residual)
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
    build.top()
    output = residual
    if spec.post_norm is not None:
        output = build.norm(residual, spec.post_norm, f"{ROOM}.post_norm", "a.post_ln")
    layers = program(build.cut(), output)
    build.ops.append(GivenRows(out=residual))
    rows = _merged(build, spec, residual)
    rows = _projected(build, spec.projector, rows, width, f"{ROOM}.projector", spec.hidden_size)
    stages = (Stage(first), Stage(layers), Stage(program(build.ops, rows)))
    derived = {weight: each for (each, _), weight in build.derived.items()}
    return TowerDefinition(spec, stages, tuple(build.params), derived, None, None)


def _cut(build: Builder, residual: Buffer) -> Program:
    """The program up to here; the next one goes on from its rows."""
    made = program(build.cut(), residual)
    build.ops.append(GivenRows(out=residual))
    return made


def _inner_stages(build: Builder, spec: InnerMerger, residual: Buffer) -> Iterator[Stage]:
    spec.emit_attention(build, residual)
    yield Stage(_cut(build, residual), window=spec.count)
    made = spec.emit_merged(build, residual)
    merged = program(build.cut(), made)
    mean = build.buffer(f"{ROOM}.inner.mean", residual.width)
    ops = [GivenRows(out=residual), MergeRows(out=mean, x=residual, count=spec.count, kind="mean")]
    build.ops.append(GivenRows(out=residual))
    yield Stage(merged, mean=program(ops, mean), divisor=spec.count)


def _merged_rows(build: Builder, spec: TowerSpec, rows: Buffer) -> Buffer:
    """What the projector reads."""
    if spec.post_norm is not None:
        rows = build.norm(rows, spec.post_norm, f"{ROOM}.post_norm", "v.post_ln")
    return _merged(build, spec, rows)


def _head(build: Builder, spec: TowerSpec, rows: Buffer, width: int) -> Buffer:
    """What makes rows of the language model of those that were merged."""
    if spec.queries is not None or not spec.is_projected:
        return rows
    if spec.own_projector is not None:
        return spec.own_projector.emit(build, rows, width, f"{ROOM}.projector")
    return _projected(build, spec.projector, rows, width, f"{ROOM}.projector", spec.hidden_size)


def _tap(build: Builder, spec: TowerSpec, residual: Buffer, width: int, number: int) -> Program:
    after = build.cut()  # the beginning of the next stage
    build.ops.append(GivenRows(out=residual))
    name = f"{ROOM}.taps.{number}"
    rows = _projected(build, spec.tap_projector, _merged(build, spec, residual), width, name, spec.hidden_size)
    made = program(build.cut(), rows)
    build.ops += after
    return made


def _merged(build: Builder, spec: TowerSpec, rows: Buffer) -> Buffer:
    if spec.merge == 1:
        return rows
    merged = build.buffer("merged", spec.hidden_size * (1 if spec.merge_kind == "mean" else spec.merge))
    build.ops.append(MergeRows(out=merged, x=rows, count=spec.merge, kind=spec.merge_kind))
    return merged


def _add_positions(build: Builder, spec: TowerSpec, residual: Buffer) -> None:
    """With the vector of the class token, whose patch is all zeros, in the row of its position."""
    table = Matrix(name=f"{ROOM}.positions", gguf="v.position_embd", rows=spec.num_positions)
    weight = build.matrices(f"{ROOM}.positions", [table], spec.hidden_size, None, "embedding")
    if spec.has_class_token:
        first = build.declared(f"{ROOM}.class_token", "v.class_embd", spec.hidden_size)
        others = None
        if spec.patch_bias:  # the class token's patch is zeros: it has no part in the bias
            others = build.declared(f"{ROOM}.patches.bias", "v.patch_embd.bias", spec.hidden_size)
        made = (lambda parts: parts[0].roll(1, 0)) if spec.class_is_last else None
        build.params[-1] = replace(build.params[-1], first_row=first, other_rows=others, made=made)
    out = build.buffer(f"{ROOM}.positions", spec.hidden_size)
    build.ops.append(Embed(out=out, weight=weight, index="positions"))
    build.ops.append(Add(residual=residual, x=out))


def _projected(build: Builder, spec: ProjectorSpec, rows: Buffer, width: int, name: str, size: int) -> Buffer:
    """`size`: of the rows that were merged."""
    if spec.norm is not None:
        rows = build.norm(rows, spec.norm, f"{name}.norm", "mm.norm")
    if spec.merges_by_matrix:
        rows = build.linear(rows, f"{name}.merger", [Matrix(name=f"{name}.merger", gguf="mm.merger", rows=size)], None)
    if not spec.inner_size:
        return build.linear(rows, name, [Matrix(name=name, gguf="mm.0", rows=width, bias=spec.bias)], None)
    up = Matrix(name=f"{name}.up", gguf="mm.0", rows=spec.inner_size, bias=spec.bias)
    gate = replace(up, name=f"{name}.gate", gguf="mm.gate")
    inner = build.linear(rows, f"{name}.up", [gate, up] if spec.is_gated else [up], None)
    act = build.buffer(f"{name}.act", spec.inner_size)
    build.ops.append(Act(out=act, x=inner, kind=spec.activation, gated=spec.is_gated))
    if spec.inner_norm is not None:
        act = build.norm(act, spec.inner_norm, f"{name}.inner_norm", "mm.inner_norm")
    if spec.middle_size:
        middle = Matrix(name=f"{name}.middle", gguf="mm.1", rows=spec.middle_size, bias=spec.bias)
        inner = build.linear(act, f"{name}.middle", [middle], None)
        act = build.buffer(f"{name}.middle_act", spec.middle_size)
        build.ops.append(Act(out=act, x=inner, kind=spec.activation, gated=False))
    down = Matrix(name=f"{name}.down", gguf="mm.2", rows=width, bias=spec.bias)
    out = build.linear(act, f"{name}.down", [down], None)
    return out if spec.last_norm is None else build.norm(out, spec.last_norm, f"{name}.last_norm", "mm.last_norm")
