"""Which products of a model adapters can change, and its program with a place for what they add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from octavo.models.decoder import EMBEDDING, Definition
from octavo.models.params import Param, TensorDecl
from octavo.ops.lora import LoraTarget, bank_name
from octavo.ops.operands import Weight
from octavo.ops.operations import Embed, Linear, LoraDelta, Op, ReplaceRows
from octavo.ops.program import Program
from octavo.ops.table import Ops


@dataclass(frozen=True)
class Target:
    """A declared matrix as a part of a product: its columns from `first` on."""

    weight: Weight
    first: int
    tensor: TensorDecl
    bias: TensorDecl | None


def with_deltas(definition: Definition) -> Definition:
    """The same with a `LoraDelta` behind each product, and rows in place of the embedding's. A step without adapters
    computes what it did before."""
    replaces = any(isinstance(op, ReplaceRows) for op in definition.program.ops)
    ops: list[Op] = []
    for op in definition.program.ops:
        ops.append(op)
        if isinstance(op, Linear):
            ops.append(LoraDelta(out=op.out, x=op.x, weight=op.weight))
        elif isinstance(op, Embed) and op.index == "token_ids" and not replaces:
            ops.append(ReplaceRows(x=op.out))
    program = Program(tuple(ops), definition.program.output)
    program.check()
    return replace(definition, program=program)


def targets(definition: Definition) -> dict[str, Target]:
    """By the declared names of the matrices; a tied output matrix is `lm_head.weight` too."""
    assert definition.lm_head is not None, "the model gives vectors"
    products = {op.weight.name for op in definition.program.ops if isinstance(op, Linear)}
    found: dict[str, Target] = {}
    for param in definition.params:
        if param.weight.name in products or (param.weight.name == definition.lm_head.name and not param.unit_rows):
            first = 0
            for part, bias in zip(param.parts, param.biases or (None,) * len(param.parts), strict=True):
                found[part.name] = Target(param.weight, first, part, bias)
                first += part.shape[0]
    if definition.spec.tie_word_embeddings:
        tied = _param(definition, EMBEDDING)
        table = replace(tied.parts[0], name="lm_head.weight")
        found[table.name] = Target(definition.lm_head, 0, table, tied.biases[0])
    return found


def _param(definition: Definition, name: str) -> Param:
    return next(param for param in definition.params if param.weight.name == name)


def lora_targets(definition: Definition) -> list[LoraTarget]:
    """Each product once, with the columns of its parts."""
    columns: dict[str, tuple[Weight, list[int]]] = {}
    for target in targets(definition).values():
        columns.setdefault(target.weight.name, (target.weight, []))[1].append(target.tensor.shape[0])
    return [LoraTarget(weight, tuple(parts)) for weight, parts in columns.values()]


def make_banks(
    definition: Definition, ops: Ops, num_slots: int, max_rank: int, dtype: torch.dtype
) -> Mapping[str, Any]:
    """A place for the adapters of each product, by the names under which programs look for them."""
    return {
        bank_name(target.weight): ops.lora_bank(target.columns, target.weight.shape[1], num_slots, max_rank, dtype)
        for target in lora_targets(definition)
    }
