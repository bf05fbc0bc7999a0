"""Adapters for longer contexts than the model's: each with a rotation of its own, whose table lies behind the model's.

A row's place in the tables is told as a position of one part: its own, or behind it where its adapter's table begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from octavo.base.errors import InvalidConfig
from octavo.models.decoder import Definition
from octavo.models.rope import cos_sin_table
from octavo.models.spec import RopeSpec
from octavo.ops.operands import Buffer, Weight
from octavo.ops.operations import GatherRotation, LatentWrite, Op, RopeWrite, RopeWriteRows
from octavo.ops.program import Program


@dataclass(frozen=True)
class LongRopes:
    """The tables of a model's rotations: the model's own of `positions` rows, then one for each factor."""

    factors: tuple[float, ...]
    positions: int
    rows: tuple[int, ...]

    def start(self, factor: float) -> int:
        """Where a factor's table begins; that of 1 is the model's."""
        if factor == 1.0:
            return 0
        return self.positions + sum(self.rows[: self.factors.index(factor)])


def long_ropes(factors: Sequence[float], positions: int, max_model_len: int) -> LongRopes:
    """`positions`: of the model; `max_model_len`: of what is served, which may be longer."""
    rows = tuple(min(max_model_len, int(positions * factor)) for factor in factors)
    return LongRopes(tuple(factors), min(positions, max_model_len), rows)


def with_long_ropes(definition: Definition) -> Definition:
    """The same with tables that have room for several rotations. Raises InvalidConfig for other positions than those
    that are told by a plain rotation."""
    flag = "--long-lora-scaling-factors"
    ropes = {weight: spec for weight, spec in definition.derived.items() if isinstance(spec, RopeSpec)}
    ops: list[Op] = []
    found: dict[Weight, tuple[Buffer, Buffer]] = {}
    for op in definition.program.ops:
        if isinstance(op, RopeWriteRows | LatentWrite):
            raise InvalidConfig(f"{flag}: the positions of {definition.spec.model_type} are told in another way.")
        if not isinstance(op, RopeWrite) or op.rotation is None:
            ops.append(op)
            continue
        if ropes[op.rotation].kind != "default" or op.q_scales is not None:
            raise InvalidConfig(f"{flag}: the rotation of {definition.spec.model_type} is scaled already.")
        if op.rotation not in found:
            width = op.rotation.shape[1]
            rows = Buffer(f"{op.rotation.name} rows", width, torch.float32)
            places = Buffer(f"{op.rotation.name} places", 1, torch.int32)
            table = Weight(long_name(op.rotation), op.rotation.shape)
            ops.append(GatherRotation(out=rows, places=places, rotation=table, parts=(0,) * (width // 2)))
            found[op.rotation] = rows, places
        rows, places = found[op.rotation]
        ops.append(RopeWriteRows(**vars(op) | {"rotation": None}, rotations=rows, places=places))
    if not found:
        raise InvalidConfig(f"{flag}: {definition.spec.model_type} has no rotation.")
    program = Program(tuple(ops), definition.program.output)
    program.check()
    return replace(definition, program=program)


def long_name(weight: Weight) -> str:
    return f"{weight.name} of all contexts"


def long_tables(definition: Definition, weights: Mapping[str, Any], ropes: LongRopes) -> dict[str, Tensor]:
    """The tables of all rotations, by the names under which the program looks for them."""
    made: dict[str, Tensor] = {}
    for weight, spec in definition.derived.items():
        if not isinstance(spec, RopeSpec):
            continue
        own = weights[weight.name]
        assert len(own) == ropes.positions, (own.shape, ropes)
        others = [
            cos_sin_table(replace(spec, kind="linear", factor=factor), weight.shape[1], rows).to(own.device)
            for factor, rows in zip(ropes.factors, ropes.rows, strict=True)
        ]
        made[long_name(weight)] = torch.cat([own, *others])
    return made
