"""Configurations: older ones mean the same, and what is not implemented is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from models.family_cases import CASES, SIZES, make_model
from models.running import load
from octavo.base.errors import CheckpointError
from octavo.models.registry import model_spec
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def old_style(config: dict[str, Any]) -> None:
    """Rewrite a configuration to the keys that transformers 4 wrote."""
    rope = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if "full_attention" in rope:
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None


def old_style_of_neox(config: dict[str, Any]) -> None:
    rope = config.pop("rope_parameters")
    config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}


def drop_defaults(config: dict[str, Any]) -> None:
    """What gemma's published configurations leave out."""
    for key in ("hidden_activation", "tie_word_embeddings", "layer_types"):
        config.pop(key, None)


@pytest.mark.parametrize(
    ("case", "rewrite"),
    [
        ("llama-tied-llama3-rope", old_style),
        ("llama-yarn-rope", old_style),
        ("qwen2-tied-upper-windows", old_style),
        ("gemma2", old_style),
        ("gemma3", old_style),
        ("phi3-longrope", old_style),
        ("gpt-neox", old_style_of_neox),
        ("gemma2", drop_defaults),
        ("gemma3", drop_defaults),
    ],
)
def test_older_configurations_mean_the_same(
    case: str, rewrite: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    make_model(tmp_path, *CASES[case])
    ops = bind("cpu", "reference")
    new = load(tmp_path, ops).spec
    config = json.loads((tmp_path / "config.json").read_text())
    rewrite(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, ops).spec == new


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("deepseek-v3", {"rope_interleave": False}, "rope_interleave"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func"),
        ("deepseek-v3", {"n_group": 4}, "n_group"),
        ("deepseek-v3", {"topk_group": 1, "num_experts_per_tok": 3}, "topk_group"),
        ("deepseek-v3", {"kv_lora_rank": 40}, "kv_lora_rank"),
        ("deepseek-v2-groups", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("deepseek-v2-groups", {"topk_method": "best"}, "topk_method"),
        ("deepseek-v2-groups", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("glm-4.7-flash", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
        ("lfm2", {"layer_types": ["conv", "mamba", "conv"]}, "layer_types"),
        ("lfm2", {"conv_L_cache": 1}, "conv_L_cache"),
    ],
)
def test_options_that_are_not_implemented_are_refused_by_name(case: str, changes: dict[str, Any], message: str) -> None:
    family, options = CASES[case]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options}).to_dict()
    config["architectures"] = [f"{family}ForCausalLM"]
    model_spec(config, "here")
    with pytest.raises(CheckpointError, match=message):
        model_spec({**config, **changes}, "here")
