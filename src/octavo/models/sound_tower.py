"""From a `TowerSpec` that hears to programs: frames of a sound become rows of the language model."""

from __future__ import annotations

from octavo.models.builder import Builder
from octavo.models.encoder import convolutions
from octavo.models.spec import TowerSpec
from octavo.models.tower import ROOM, Stage, TowerDefinition, add_positions, merged, projected
from octavo.ops.operands import Buffer
from octavo.ops.operations import GivenRows
from octavo.ops.program import program


def define_sound_tower(spec: TowerSpec, width: int) -> TowerDefinition:
    """Three stages. What a stage reads is made of the rows of the one before it (`worker/sounds.py`).

    three frames side by side --first convolution--> a row for each frame
    three of these, every other --second convolution, positions, layers, norm--> a row for each two frames
    `merge` of these --projector--> a row of the language model

    `width`: of the language model's rows. Raises ProgramError if the blocks of a family do not fit together.
    """
    assert spec.sound is not None
    build = Builder(spec.num_positions, f"{ROOM}.layers", "a.blk", keeps=False)
    residual = Buffer("residual", spec.hidden_size)
    first = program(convolutions(build, spec.sound, residual, ROOM, "a"), residual)
    add_positions(build, spec, residual)
    for number, layer in enumerate(spec.layers):
        build.layer(number)
        layer.emit(build, residual)
    build.top()
    output = residual
    if spec.post_norm is not None:
        output = build.norm(residual, spec.post_norm, f"{ROOM}.post_norm", "a.post_ln")
    layers = program(build.cut(), output)
    build.ops.append(GivenRows(out=residual))
    rows = merged(build, spec, residual)
    rows = projected(build, spec.projector, rows, width, f"{ROOM}.projector", spec.hidden_size)
    head = program(build.ops, rows)
    derived = {weight: each for (each, _), weight in build.derived.items()}
    return TowerDefinition(spec, (Stage(first), Stage(layers), Stage(head)), tuple(build.params), derived, None, None)
