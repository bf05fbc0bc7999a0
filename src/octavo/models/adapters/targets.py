"""Which products of a model adapters can change, and its program with a place for what they add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from octavo.models.decoder import EMBEDDING, Definition
from octavo.models.params import Param, TensorDecl
from octavo.ops.lora import ExpertsBank, LoraBank, LoraTarget, bank_name
from octavo.ops.operands import Weight
from octavo.ops.operations import Embed, Experts, Linear, LoraDelta, Op, ReplaceRows
from octavo.ops.program import Program
from octavo.ops.table import Ops


@dataclass(frozen=True)
class Target:
    """A declared matrix as a part of a product: its columns from `first` on. `expert`: of a product of experts, whose
    it is; else -1."""

    weight: Weight
    first: int
    tensor: TensorDecl
    bias: TensorDecl | None
    expert: int = -1


def with_deltas(definition: Definition, extra_tokens: int) -> Definition:
    """The same with a `LoraDelta` behind each product, and rows in place of the embedding's. A step without adapters
    computes what it did before. `extra_tokens`: that adapters may add, for which embeddings have no rows."""
    replaces = any(isinstance(op, ReplaceRows) for op in definition.program.ops)
    ops: list[Op] = []
    for op in definition.program.ops:
        if extra_tokens and isinstance(op, Embed) and op.index == "token_ids":
            op = replace(op, is_partial=True)
        ops.append(op)
        if isinstance(op, Linear):
            ops.append(LoraDelta(out=op.out, x=op.x, weight=op.weight))
        elif isinstance(op, Experts):
            ops[-1] = replace(op, has_adapters=True)
        elif isinstance(op, Embed) and op.index == "token_ids" and not replaces:
            ops.append(ReplaceRows(x=op.out))
    program = Program(tuple(ops), definition.program.output)
    program.check()
    return replace(definition, program=program, extra_tokens=extra_tokens)


def with_given_rows(definition: Definition) -> Definition:
    """The same with rows in place of the embedding's, where it has none: a step that brings none computes what it did
    before."""
    if any(isinstance(op, ReplaceRows) for op in definition.program.ops):
        return definition
    ops: list[Op] = []
    for op in definition.program.ops:
        ops.append(op)
        if isinstance(op, Embed) and op.index == "token_ids":
            ops.append(ReplaceRows(x=op.out))
    program = Program(tuple(ops), definition.program.output)
    program.check()
    return replace(definition, program=program)


def given_width(definition: Definition) -> int:
    """Columns of the rows that steps bring in the place of the embedding's: more than these where layers behind the
    first take some."""
    return max((op.first + op.x.width for op in definition.program.ops if isinstance(op, ReplaceRows)), default=0)


def targets(definition: Definition) -> dict[str, Target]:
    """By the declared names of the matrices; a tied output matrix is `lm_head.weight` too."""
    head = definition.lm_head  # None: the model gives vectors
    products = {op.weight.name for op in definition.program.ops if isinstance(op, Linear)}
    experts = {
        weight.name
        for op in definition.program.ops
        if isinstance(op, Experts)
        for weight in (op.gate_up_weight, op.down_weight)
    }
    found: dict[str, Target] = {}
    for param in definition.params:
        weight, biases = param.weight, param.biases or (None,) * len(param.parts)
        if weight.name in experts:
            num_parts = len(param.parts) // weight.shape[0]
        elif weight.name in products or (head is not None and weight.name == head.name and not param.unit_rows):
            num_parts = len(param.parts)
        else:
            continue
        first = 0
        for number, (part, bias) in enumerate(zip(param.parts, biases, strict=True)):
            first = 0 if number % num_parts == 0 else first
            found[part.name] = Target(weight, first, part, bias, number // num_parts if weight.name in experts else -1)
            first += part.shape[0]
    if definition.spec.tie_word_embeddings and head is not None:
        tied = _param(definition, EMBEDDING)
        table = replace(tied.parts[0], name="lm_head.weight")
        found[table.name] = Target(head, 0, table, tied.biases[0])
    return found


def _param(definition: Definition, name: str) -> Param:
    return next(param for param in definition.params if param.weight.name == name)


def lora_targets(definition: Definition) -> list[LoraTarget]:
    """Each product once, with the columns of its parts."""
    columns: dict[str, tuple[Weight, list[int]]] = {}
    for target in targets(definition).values():
        of_weight = columns.setdefault(target.weight.name, (target.weight, []))[1]
        if target.expert <= 0:  # the others' parts are as the first one's
            of_weight.append(target.tensor.shape[0])
    return [
        LoraTarget(weight, tuple(parts), weight.shape[0] if len(weight.shape) == 3 else 0)
        for weight, parts in columns.values()
    ]


def make_banks(
    definition: Definition, ops: Ops, num_slots: int, max_rank: int, dtype: torch.dtype
) -> Mapping[str, Any]:
    """A place for the adapters of each product, by the names under which programs look for them."""
    banks: dict[str, LoraBank | ExpertsBank] = {}
    for target in lora_targets(definition):
        slots = num_slots * target.num_products
        bank = ops.lora_bank(target.columns, target.weight.shape[-1], slots, max_rank, dtype)
        banks[bank_name(target.weight)] = (
            ExpertsBank(bank, target.num_experts, num_slots) if target.num_experts else bank
        )
    return banks
