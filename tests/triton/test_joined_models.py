"""Models whose operations are joined, against the same models whose are not; and how many launches that saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from models.family_cases import make_model
from models.running import Batch, Run, load
from octavo.ops.table import Binding, Ops, bind
from octavo.ops.triton.attention_plan import AttentionPlan

CPU = torch.device("cpu")
BF16 = torch.bfloat16

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True}),
    "gemma3": ("Gemma3", {"sliding_window": 8, "query_pre_attn_scalar": 24}),
}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 80, "num_attention_heads": 2,
    "num_key_value_heads": 1,
}  # fmt: skip
#: Launches of the step, before and behind.
LAUNCHES = {"llama": (1 + 8 + 2, 1 + 5 + 2), "gemma3": (1 + 10 + 2, 1 + 8 + 2)}


class PlannedRun(Run):
    """Steps with plans, as the worker makes them."""

    def __init__(self, loaded: Any, ops: Ops, num_seqs: int) -> None:
        super().__init__(loaded, ops, num_seqs, 40, BF16)
        self._planner = ops.attention_planner(loaded.model.definition.program.caches[0].heads, CPU, BF16)

    def plan(self, batch: Batch) -> AttentionPlan:
        num_decodes = int((batch.query_start_loc.diff() == 1).sum())
        lens = batch.seq_lens.numpy(), batch.query_start_loc.numpy()
        arrays = self._planner.arrays(*lens, num_decodes, are_apart=True)
        return self._planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])


def step_of(directory: Path, monkeypatch: pytest.MonkeyPatch, joins: bool) -> tuple[Tensor, list[str]]:
    """The logits of two tokens behind two prompts, and the kernels of their step."""
    monkeypatch.setattr("octavo.ops.triton.fuse.is_on", lambda switch: joins)
    ops = bind("cuda", binding=Binding(torch_device=CPU, activation_dtype=BF16, to_device=lambda weight: weight))
    run = PlannedRun(load(directory, ops), ops, 2)
    run.step([[5, 9], [7, 8, 3]])
    launched: list[str] = []
    launch = InterpretedFunction.__getitem__

    def noted(self: Any, grid: Any) -> Any:
        launched.append(self.fn.__name__)
        return launch(self, grid)

    with monkeypatch.context() as patch:
        patch.setattr(InterpretedFunction, "__getitem__", noted)
        return torch.cat(run.step([[10], [12]])), launched


@pytest.mark.parametrize("case", MODELS)
def test_models_say_the_same_in_fewer_launches(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, options = MODELS[case]
    make_model(tmp_path, family, {**SIZES, **options})
    plain, before = step_of(tmp_path, monkeypatch, joins=False)
    joined, behind = step_of(tmp_path, monkeypatch, joins=True)
    error = (joined - plain).norm(dim=1) / plain.norm(dim=1)
    assert bool((error < 3e-2).all()), error
    assert (len(before), len(behind)) == LAUNCHES[case]
