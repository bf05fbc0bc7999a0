"""Layers whose caches belong to different groups: each reads and writes by its own group's block table and slots."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.family_cases import PROMPTS, SIZES, make_model
from models.running import BLOCK_SIZE, load
from octavo.ops.operations import Attend, Op, RopeWrite
from octavo.ops.program import Program
from octavo.ops.run import Runner
from octavo.ops.table import Ops, bind
from octavo.ops.workspace import Workspace

LENGTH = 40


def in_groups(program: Program) -> Program:
    """The program with every other layer in group 1."""

    def moved(op: Op) -> Op:
        if isinstance(op, RopeWrite | Attend):
            return dataclasses.replace(op, cache=dataclasses.replace(op.cache, group=op.cache.index % 2))
        return op

    return Program(tuple(moved(op) for op in program.ops), program.output)


def run(ops: Ops, program: Program, weights: Any, tables: list[list[int]]) -> tuple[torch.Tensor, list[list[int]]]:
    """The output of one prompt whose blocks lie, in each group, where `tables` says; and the blocks that each cache
    has values in."""
    positions = torch.arange(LENGTH)
    groups = []
    for table in tables:
        slots = torch.tensor(table)[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        groups.append((torch.tensor([table], dtype=torch.int32), slots))
    step = SimpleNamespace(
        token_ids=torch.tensor(PROMPTS[0][:LENGTH], dtype=torch.int32),
        positions=positions.to(torch.int32),
        query_start_loc=torch.tensor([0, LENGTH], dtype=torch.int32),
        seq_lens=torch.tensor([LENGTH], dtype=torch.int32),
        cache_groups=groups,
        attention_plan=None,
        key_ends=None,
        adapter_slots=None,
    )
    shapes = ops.kv_cache_shapes(8, BLOCK_SIZE, 2, 16)
    caches = [tuple(torch.full(shape, torch.nan) for shape in shapes) for _ in program.caches]
    runner = ops.program_runner(ops, program, weights)
    space = Workspace(program, LENGTH, torch.float32, torch.device("cpu"))
    found: torch.Tensor = runner.run(space, step, caches).clone()
    written = [(~values.isnan()).flatten(1).any(1).nonzero().flatten().tolist() for _, values in caches]
    return found, written


@pytest.mark.parametrize("impl", ["reference", "auto", "one by one"])
def test_layers_of_another_group_use_its_block_table(impl: str, tmp_path: Path) -> None:
    make_model(tmp_path, "Llama", SIZES)
    ops = bind("cpu", "reference" if impl == "reference" else "auto")
    ops = dataclasses.replace(ops, program_runner=Runner) if impl == "one by one" else ops
    model = load(tmp_path, ops).model
    weights = model._runner._weights
    expected, written = run(ops, model.program, weights, [[1, 2, 3]])
    assert written == [[1, 2, 3]] * 3
    assert torch.isfinite(expected).all()
    found, written = run(ops, in_groups(model.program), weights, [[1, 2, 3], [7, 4, 6]])
    assert written == [[1, 2, 3], [4, 6, 7], [1, 2, 3]]
    assert torch.equal(found, expected)
