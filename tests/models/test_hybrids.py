"""Options of models with Mamba that are not implemented are refused by their names; what exports call its tensors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.family_cases import BAMBA, CASES, FALCON_H1, HYBRID, MAMBA, MAMBA_2, PROMPTS, SIZES, make_model
from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.models.registry import model_spec
from octavo.ops.table import bind

GRANITE: dict[str, Any] = {**SIZES, **HYBRID, "architectures": ["GraniteMoeHybridForCausalLM"], "num_local_experts": 0}
NEMOTRON: dict[str, Any] = {
    **SIZES, "architectures": ["NemotronHForCausalLM"], "mamba_num_heads": 4, "mamba_head_dim": 20, "n_groups": 2,
    "hybrid_override_pattern": "M-*M", "num_hidden_layers": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mamba_proj_bias": True}, "mamba_proj_bias"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type"),
        ({"layer_types": ["mamba", "attention", "conv"]}, "layer_types: 'conv'"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_types": None}, "layer_types"),
        ({"mamba_n_heads": 5}, "mamba_n_heads"),
        ({"mamba_d_head": 16}, "mamba_d_head"),
        ({"mamba_n_groups": 3}, "mamba_n_groups"),
    ],
)
def test_options_of_granite(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        model_spec({**GRANITE, **changes}, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hybrid_override_pattern": "M-*X"}, "layer_types: 'X'"),
        ({"hybrid_override_pattern": "M-*E", "n_group": 3}, "n_group"),
        ({"hybrid_override_pattern": "M-*E", "topk_group": 2}, "topk_group"),
        ({"hybrid_override_pattern": "M-*E", "moe_latent_size": -1}, "moe_latent_size"),
        ({"mamba_hidden_act": "gelu"}, "mamba_hidden_act"),
        ({"use_bias": True}, "use_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"sliding_window": 8}, "sliding_window"),
    ],
)
def test_options_of_nemotron_h(changes: dict[str, Any], message: str) -> None:
    model_spec(NEMOTRON, "test")
    with pytest.raises(CheckpointError, match=message):
        model_spec({**NEMOTRON, **changes}, "test")


OTHERS: dict[str, dict[str, Any]] = {
    "FalconH1ForCausalLM": {**SIZES, **FALCON_H1},
    "BambaForCausalLM": {**SIZES, **BAMBA},
    "MambaForCausalLM": {**SIZES, **MAMBA},
    "FalconMambaForCausalLM": {**SIZES, **MAMBA},
    "Mamba2ForCausalLM": {**SIZES, **MAMBA_2},
}


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("FalconH1ForCausalLM", {"mamba_rms_norm": True}, "mamba_norm_before_gate = 'True'"),
        ("FalconH1ForCausalLM", {"attention_bias": True, "attention_in_multiplier": 2.0}, "attention_in_multiplier"),
        ("FalconH1ForCausalLM", {"ssm_multipliers": [1.0] * 4}, "ssm_multipliers .* list of 5"),
        ("FalconH1ForCausalLM", {"mlp_multipliers": [1.0, 0.0]}, "mlp_multipliers"),
        ("FalconH1ForCausalLM", {"key_multiplier": float("inf")}, "key_multiplier"),
        ("FalconH1ForCausalLM", {"mamba_proj_bias": True}, "mamba_proj_bias"),
        ("BambaForCausalLM", {"attn_layer_indices": [3]}, "attn_layer_indices"),
        ("BambaForCausalLM", {"attn_layer_indices": [[1]]}, "attn_layer_indices"),
        ("MambaForCausalLM", {"hidden_act": "gelu"}, "hidden_act"),
        ("MambaForCausalLM", {"time_step_rank": 0}, "time_step_rank"),
        ("MambaForCausalLM", {"state_size": 300}, "state_size"),
        ("FalconMambaForCausalLM", {"mixer_rms_eps": "0"}, "mixer_rms_eps"),
        ("Mamba2ForCausalLM", {"use_bias": True}, "use_bias"),
        ("Mamba2ForCausalLM", {"head_dim": 24}, "head_dim"),
        ("Mamba2ForCausalLM", {"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
    ],
)
def test_options_of_the_others(architecture: str, changes: dict[str, Any], message: str) -> None:
    config = {"architectures": [architecture], **OTHERS[architecture]}
    model_spec(config, "test")
    with pytest.raises(CheckpointError, match=message):
        model_spec({**config, **changes}, "test")


def test_contexts_are_as_long_as_a_configuration_says_or_longer_than_any_prompt() -> None:
    config = {**SIZES, **MAMBA, "architectures": ["MambaForCausalLM"]}
    assert model_spec(config, "test").max_position_embeddings == 128
    assert model_spec({**config, "max_position_embeddings": None}, "test").max_position_embeddings == 262_144


def test_names_of_other_exports(tmp_path: Path) -> None:
    """Mamba-Codestral's begin with `model.`, and older files of Mamba have one embedding."""
    ops = bind("cpu", "reference")
    for case, old, new in (("mamba2", r"^", "model."), ("mamba", r"\.embeddings\.", ".embedding.")):
        path = tmp_path / case
        make_model(path, *CASES[case])
        expected = prompt_logits(load(path, ops), ops, PROMPTS)
        tensors = load_file(path / "model.safetensors")
        save_file({re.sub(old, new, name): tensor for name, tensor in tensors.items()}, path / "model.safetensors")
        assert torch.equal(torch.stack(prompt_logits(load(path, ops), ops, PROMPTS)), torch.stack(expected))
