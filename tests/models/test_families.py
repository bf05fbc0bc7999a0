"""All families against transformers: tiny random models, whole-prompt logits in float32."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.expert_cases import EXPERT_CASES
from models.family_cases import CASES, PROMPT_LENGTH, PROMPTS, make_model, transformers_logits
from models.running import Run, load, prompt_logits
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.ops.run import Runner
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("impl", ["reference", "auto"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, impl: Any, tmp_path: Path) -> None:
    family, options = CASES[case]
    expected = transformers_logits(make_model(tmp_path, family, options), PROMPTS)
    ops = bind("cpu", impl)
    loaded = load(tmp_path, ops)
    assert loaded.dtype == torch.float32
    for chunk in (PROMPT_LENGTH, 7, 1):
        ours = prompt_logits(loaded, ops, PROMPTS, chunk)
        torch.testing.assert_close(torch.stack(ours), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_token_costs_two_operations_for_each_weight_of_the_layers(case: str, tmp_path: Path) -> None:
    """K7: the benchmarks' count of operations is that of the matrices that the checkpoint holds."""
    family, options = CASES[case]
    make_model(tmp_path, family, options)
    config = json.loads((tmp_path / "config.json").read_text())
    definition = define(model_spec(config, str(tmp_path)))
    declared = definition.tensors.items()
    matrices = [(name, tensor.shape) for name, tensor in declared if ".layers." in name and len(tensor.shape) == 2]
    # Of the experts a token meets only some.
    config |= config.get("ffn_config", {})
    counts = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = ("moe_k", "moe_topk", "moe_top_k", "num_experts_per_tok")
    num_experts, top_k = (next((config[key] for key in keys if config.get(key)), 1) for keys in (counts, chosen))
    share = top_k / num_experts
    values = [rows * columns * (share if ".experts." in name else 1) for name, (rows, columns) in matrices]
    assert definition.layer_ops_per_token == round(2 * sum(values))


#: Families with operations that the others do not have.
OTHER_KINDS = (
    "gpt2", "gpt-neox", "bloom", "phi3-longrope-partial-window", "mixtral", "qwen3-moe", "gpt-oss", "qwen2-moe",
    "glm4-moe", "deepseek-v3", "lfm2", "jamba", "granite-hybrid", "nemotron-h", "falcon-mamba", "mamba2",
    "qwen3-next", "olmo-hybrid",
)  # fmt: skip


def test_chunking_and_company_change_no_bit(tmp_path: Path) -> None:
    """The law of the kernels, through a whole model: windows, norms, biases and all."""
    for case in ("gemma2", "gemma3", "qwen2-tied-upper-windows", "gemma3-softcap-ropes-untied", *OTHER_KINDS):
        make_model(tmp_path / case, *CASES[case])
        ops = bind("cpu")
        loaded = load(tmp_path / case, ops)
        whole = prompt_logits(loaded, ops, PROMPTS)
        for chunk in (1, 7, 16):
            assert torch.equal(torch.stack(prompt_logits(loaded, ops, PROMPTS, chunk)), torch.stack(whole))
        assert torch.equal(prompt_logits(loaded, ops, PROMPTS[:1])[0], whole[0])


#: Those whose operations differ from layer to layer, or from those of the others.
ONE_CALL = [
    case for case in CASES if case not in EXPERT_CASES or case in ("gpt-oss", "qwen2-moe", "glm4-moe", "dbrx", "llama4")
]


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", ONE_CALL)
def test_all_layers_in_one_call_change_no_bit(case: str, kv_dtype: torch.dtype, tmp_path: Path) -> None:
    """Of the same native operations called one by one: prompts in pieces, and more sequences than one."""
    family, options = CASES[case]
    make_model(tmp_path, family, options)
    native = bind()
    assert native.implementations["program_runner"] == "cpu"
    one_by_one = dataclasses.replace(native, program_runner=Runner)
    prompts = [[3, 14, 15, 9, 2, 6, 5] * 5, [2, 7, 1, 8, 2, 8, 1] * 5]
    found = [
        prompt_logits(load(tmp_path, ops), ops, prompts, chunk=9, kv_dtype=kv_dtype) for ops in (native, one_by_one)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("impl", ["reference", "auto", "one by one"])
@pytest.mark.parametrize("case", ["llama", "gemma3", "gpt-neox", "mixtral"])
def test_the_rows_that_are_needed_are_those_of_the_whole_step(impl: str, case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    make_model(tmp_path, family, options)
    ops = bind("cpu", "reference" if impl == "reference" else "auto")
    loaded = load(tmp_path, dataclasses.replace(ops, program_runner=Runner) if impl == "one by one" else ops)
    whole = Run(loaded, ops, 2, PROMPT_LENGTH + 1, torch.float32)
    part = Run(loaded, ops, 2, PROMPT_LENGTH + 1, torch.float32)
    expected = torch.cat(whole.step([prompt[:20] for prompt in PROMPTS]))
    for needed in ([3, 19, 20, 39], list(range(40)), []):
        part.lens = [0, 0]
        (found,) = part.step([prompt[:20] for prompt in PROMPTS], needed)
        torch.testing.assert_close(found, expected[needed], rtol=0, atol=1e-5 if impl == "reference" else 0)
    # All keys and values were written: the next step's context is whole.
    for mine, theirs in zip(part.step([[1], [2]]), whole.step([[1], [2]]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 if impl == "reference" else 0)
