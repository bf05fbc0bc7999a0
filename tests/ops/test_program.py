"""Programs: what check refuses, what joins, which rows are dropped, and which buffers share memory."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from octavo.ops.operands import Buffer, Cache, Heads, Weight
from octavo.ops.operations import Act, Add, AddNorm, Attend, Embed, KeepRows, Linear, Norm, Op, RopeWrite
from octavo.ops.program import Program, ProgramError, program
from octavo.ops.workspace import Workspace

HEADS = Heads(num_heads=2, num_kv_heads=1, head_dim=4)
H, FF = 8, 24


class Layer:
    """The operations of a model of one layer, by name, to be put together or spoilt."""

    def __init__(self) -> None:
        names = {
            "residual": H,
            "normed": H,
            "qkv": 16,
            "attended": H,
            "o": H,
            "mlp_in": H,
            "gate_up": 2 * FF,
            "act": FF,
        }
        names |= {"down": H, "output": H}
        self.buffers = b = {name: Buffer(name, width) for name, width in names.items()}
        cache = Cache(index=0, heads=HEADS)
        self.ops: list[Op] = [
            Embed(out=b["residual"], weight=Weight("table", (32, H))),
            Norm(out=b["normed"], x=b["residual"], weight=Weight("n1", (H,)), eps=1e-6),
            Linear(out=b["qkv"], x=b["normed"], weight=Weight("qkv", (16, H))),
            RopeWrite(qkv=b["qkv"], heads=HEADS, cache=cache, rotation=Weight("rope", (64, 4))),
            Attend(out=b["attended"], qkv=b["qkv"], heads=HEADS, cache=cache, scale=0.5),
            Linear(out=b["o"], x=b["attended"], weight=Weight("o", (H, H), 1)),
            Add(residual=b["residual"], x=b["o"]),
            Norm(out=b["mlp_in"], x=b["residual"], weight=Weight("n2", (H,)), eps=1e-6),
            Linear(out=b["gate_up"], x=b["mlp_in"], weight=Weight("gate_up", (2 * FF, H))),
            Act(out=b["act"], x=b["gate_up"], kind="silu"),
            Linear(out=b["down"], x=b["act"], weight=Weight("down", (H, FF), 1)),
            Add(residual=b["residual"], x=b["down"]),
            Norm(out=b["output"], x=b["residual"], weight=Weight("n3", (H,)), eps=1e-6),
        ]

    def program(self) -> Program:
        return program(self.ops, self.buffers["output"])


def test_sums_join_the_norms_behind_them_and_rows_are_dropped_behind_the_last_attention() -> None:
    layer = Layer()
    made = layer.program()
    assert [type(op).__name__ for op in made.ops] == [
        "Embed", "Norm", "Linear", "RopeWrite", "Attend", "KeepRows", "Linear", "AddNorm", "Linear", "Act", "Linear",
        "AddNorm",
    ]  # fmt: skip
    keep = made.ops[5]
    assert isinstance(keep, KeepRows)
    assert {buffer.name for buffer in keep.rows} == {"residual", "attended"}
    assert made.caches == (Cache(index=0, heads=HEADS),)


def test_a_sum_whose_norm_comes_later_stays_a_sum() -> None:
    layer = Layer()
    norm = layer.ops.pop(7)
    layer.ops.insert(7, Norm(out=Buffer("other", H), x=layer.buffers["o"], weight=Weight("n4", (H,)), eps=1e-6))
    layer.ops.insert(8, norm)
    assert sum(isinstance(op, Add) for op in layer.program().ops) == 1
    assert sum(isinstance(op, AddNorm) for op in layer.program().ops) == 1


def test_what_cannot_be_run_is_refused() -> None:
    layer = Layer()
    wide = Buffer("wide", H + 1)

    def refused(ops: list[Op], message: str, output: Buffer = layer.buffers["output"]) -> None:
        with pytest.raises(ProgramError, match=message):
            Program(tuple(ops), output).check()

    ops = layer.ops
    b = layer.buffers
    refused(ops[1:], "residual is used before it is written")
    refused([*ops, ops[0]], "residual has been written by another operation")
    refused([*ops[:1], Norm(out=wide, x=b["residual"], weight=Weight("n1", (H,)), eps=0.0)], "wide is 9 wide, not 8")
    refused([*ops[:2], Linear(out=b["qkv"], x=b["normed"], weight=Weight("qkv", (16, 9)))], "normed is 8 wide, not 9")
    refused(ops[:-1], "the result, output, is not there")
    kept = KeepRows(rows=(b["attended"],))
    refused([*ops[:5], kept, *ops[5:]], "residual has rows that were not kept")
    both = KeepRows(rows=(b["attended"], b["residual"], b["qkv"]))
    again = Attend(out=Buffer("again", H), qkv=b["qkv"], heads=HEADS, cache=Cache(index=0, heads=HEADS), scale=1.0)
    refused([*ops[:5], both, again], "needs the rows that were not kept")
    cache = Cache(index=1, heads=HEADS)
    ops[3] = RopeWrite(qkv=b["qkv"], heads=HEADS, cache=cache, rotation=Weight("rope", (64, 4)))
    ops[4] = Attend(out=b["attended"], qkv=b["qkv"], heads=HEADS, cache=cache, scale=0.5)
    refused(ops, "not numbered from 0")


@pytest.mark.parametrize("capacity", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_in_use_together_have_memory_of_their_own(capacity: int, dtype: torch.dtype) -> None:
    made = Layer().program()
    space = Workspace(made, capacity, dtype, torch.device("cpu"))
    shared = 0
    for one, other in combinations(made.lives, 2):
        (first, last), (other_first, other_last) = made.lives[one], made.lives[other]
        overlap = space[one].data_ptr() < space[other].data_ptr() + space[other].nbytes
        overlap &= space[other].data_ptr() < space[one].data_ptr() + space[one].nbytes
        assert not (overlap and first <= other_last and other_first <= last), (one.name, other.name)
        shared += overlap
    assert shared > 0
    for buffer in made.lives:
        assert space[buffer].shape == (capacity, buffer.width) and space[buffer].dtype == dtype
        assert space[buffer].data_ptr() % 64 == 0
