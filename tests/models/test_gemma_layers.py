"""Gemma 3n and 4 against transformers: streams, inputs for each layer, shared keys, heads and experts; and as GGUF."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from models.family_cases import PROMPTS, make_model, transformers_logits
from models.running import Run, load, prompt_logits
from models.test_dense_families import check_logits
from models.test_gguf_families import write_gguf
from octavo.base.errors import CheckpointError
from octavo.models import gguf_gemma
from octavo.models.checkpoint import SafetensorsCheckpoint
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")

KINDS = ["sliding_attention", "full_attention"]
SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "head_dim": 16, "sliding_window": 8, "pad_token_id": 0,
    "num_hidden_layers": 4, "layer_types": KINDS * 2, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 12,
}  # fmt: skip
GEMMA3N = {**SIZES, "laurel_rank": 8, "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.3]}
GEMMA4 = {**SIZES, "global_head_dim": 32}
EXPERTS = {"enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 24}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3n": ("Gemma3n", GEMMA3N),
    # The third layer may be any: tokens without a row in the table, another stream, and no scale.
    "gemma3n-three-streams": (
        "Gemma3n",
        {**GEMMA3N, "altup_num_inputs": 3, "altup_active_idx": 1, "altup_correct_scale": False,
         "vocab_size_per_layer_input": 70, "final_logit_softcapping": 3.0, "num_kv_shared_layers": 0,
         "activation_sparsity_pattern": None, "intermediate_size": [32, 48, 64, 48], "tie_word_embeddings": False},
    ),
    "gemma4": ("Gemma4", GEMMA4),
    "gemma4-experts": (
        "Gemma4",
        {**GEMMA4, **EXPERTS, "num_kv_shared_layers": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1,
         "hidden_size_per_layer_input": 0, "final_logit_softcapping": 3.0},
    ),
    "gemma4-wide-biases": (
        "Gemma4", {**GEMMA4, "use_double_wide_mlp": True, "attention_bias": True, "layer_types": None,
                   "num_hidden_layers": 7, "num_kv_shared_layers": 1, "tie_word_embeddings": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    check_logits(tmp_path, transformers_logits(make_model(tmp_path, *CASES[case]), PROMPTS))


def test_layers_that_see_the_keys_of_another_keep_none(tmp_path: Path) -> None:
    make_model(tmp_path, *CASES["gemma3n"])
    definition = define(model_spec(SafetensorsCheckpoint(tmp_path).config, "test"))
    assert len(definition.program.caches) == 2
    assert definition.attention_ops_per_key == 4 * definition.program.caches[0].heads.ops_per_key
    names = definition.tensors
    assert "model.layers.1.self_attn.k_proj.weight" in names
    assert "model.layers.3.self_attn.k_proj.weight" not in names


def test_keys_that_published_files_have_of_such_layers_are_left_out(tmp_path: Path) -> None:
    model = make_model(tmp_path, *CASES["gemma3n"])
    tensors = dict(model.state_dict())
    for name in ("k_proj", "v_proj", "k_norm"):
        key = f"model.layers.1.self_attn.{name}.weight"
        tensors[key.replace("1", "3")] = tensors[key].clone()
    model.save_pretrained(tmp_path, state_dict=tensors)
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def published(config: dict[str, Any]) -> None:
    """As files have it that were written before layers could say how they differ."""
    config.pop("per_layer_config")
    config |= {"global_head_dim": 32, "num_global_key_value_heads": 1}


def test_sizes_of_full_layers_are_the_same_in_both_forms(tmp_path: Path) -> None:
    make_model(tmp_path, *CASES["gemma4-experts"])
    config = json.loads((tmp_path / "config.json").read_text())
    newer = model_spec(dict(config), "test")
    published(config)
    assert model_spec(config, "test") == newer


@pytest.mark.parametrize(
    ("case", "change", "named"),
    [
        ("gemma3n", {"num_kv_shared_layers": 3}, "num_kv_shared_layers"),
        ("gemma3n", {"activation_sparsity_pattern": [0.5, 1.0, 0.0, 0.0]}, "activation_sparsity_pattern"),
        ("gemma3n", {"altup_num_inputs": 9}, "altup_num_inputs"),
        ("gemma3n", {"intermediate_size": [48, 48]}, "intermediate_size"),
        ("gemma4", {"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ("gemma4", {"per_layer_config": {"1": {"sliding_window": 4}}}, "sliding_window"),
        ("gemma4", {"per_layer_config": {"1": {"num_key_value_heads": 3}}}, "num_key_value_heads"),
        ("gemma4", {"enable_moe_block": True}, "num_experts"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(case: str, change: dict[str, Any], named: str, tmp_path: Path) -> None:
    make_model(tmp_path, *CASES[case])
    config = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(CheckpointError, match=named):
        model_spec({**config, **change}, "test")


@pytest.mark.parametrize("deviations", [1.5, "abcd", [1, 2], [0.5, math.inf], [math.nan], [[0.5]]])
def test_gguf_metadata_that_is_no_list_of_deviations_is_refused(deviations: Any) -> None:
    """Infinitely many deviations above the mean no gate would be open."""
    with pytest.raises(CheckpointError, match="activation_sparsity_scale"):
        gguf_gemma.hf_config("gemma3n_text", {}, {"activation_sparsity_scale": deviations}.get, {})


@pytest.mark.parametrize(
    "factors", [[1e30, 1.0, 1.0, 1.0], [1.0, 1e30, 1.0, 1e30], [1.0, 2.0, 1e30, 1e30], [1.0, 1e30], [1.0] * 5]
)
def test_gguf_factors_of_other_frequencies_than_the_fastest_are_refused(factors: list[float]) -> None:
    values = {"attention.key_length": 8}
    rope = gguf_gemma.ropes("gemma4_text", values.get, {"rope_type": "factors", "factors": [1.0, 1.0, 1e30, 1e30]})
    assert rope["full_attention"]["partial_rotary_factor"] == 0.5
    with pytest.raises(CheckpointError, match="rope_freqs"):
        gguf_gemma.ropes("gemma4_text", values.get, {"rope_type": "factors", "factors": factors})


@pytest.mark.parametrize("case", ["gemma3n", "gemma4", "gemma4-experts"])
def test_gguf_holds_the_same_model(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    options = {**options, "final_logit_softcapping": 3.0}
    model = make_model(tmp_path / "hf", family, options)
    write_gguf(tmp_path / "model.gguf", family.lower(), tmp_path / "hf", model)
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path / "model.gguf", ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert ("altup_proj.weight" if family == "Gemma3n" else "blk.0.layer_output_scale.weight") in names


@pytest.mark.parametrize("case", ["gemma3n", "gemma4"])
def test_the_rows_that_are_needed_are_those_of_the_whole_step(case: str, tmp_path: Path) -> None:
    """Behind the last attention only they are computed: of all streams, and of the inputs of layers."""
    make_model(tmp_path, *CASES[case])
    ops = bind("cpu")
    loaded = load(tmp_path, ops)
    prompts = [prompt[:20] for prompt in PROMPTS]
    whole = torch.cat(Run(loaded, ops, 2, 32, torch.float32).step(prompts))
    needed = [3, 19, 39]
    (found,) = Run(loaded, ops, 2, 32, torch.float32).step(prompts, needed)
    assert torch.equal(found, whole[needed])
