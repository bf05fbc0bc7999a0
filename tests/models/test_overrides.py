"""Ropes that follow the longest context, and what the command line says in place of a model's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from models.family_cases import PROMPTS, YARN_ROPE, transformers_logits
from models.running import load, prompt_logits
from models.test_dense_families import LLAMA, make_model
from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.models.overrides import overridden
from octavo.models.registry import model_spec
from octavo.ops.table import bind

DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}


def test_dynamic_ropes_follow_the_longest_context(tmp_path: Path) -> None:
    """transformers stretches by the length a text has reached; at the whole context both are the same."""
    model = make_model(tmp_path, "Llama", {"rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 20})
    native, short = bind("cpu"), [prompt[:20] for prompt in PROMPTS]
    expected = transformers_logits(model, short)
    assert load(tmp_path, native).spec.max_position_embeddings == 80
    ours = prompt_logits(load(tmp_path, native, max_model_len=45), native, PROMPTS)
    torch.testing.assert_close(torch.stack(ours), transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)
    ours = prompt_logits(load(tmp_path, native, max_model_len=20), native, short)
    torch.testing.assert_close(torch.stack(ours), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(torch.stack(prompt_logits(load(tmp_path, native), native, short)), expected, atol=1e-2)


@pytest.mark.parametrize("scaling", [{"type": "mrope"}, {"rope_type": "default", "mrope_interleaved": True}])
def test_three_parts_of_a_position_are_one_for_text(scaling: dict[str, Any]) -> None:
    plain = model_spec({**LLAMA, "architectures": ["LlamaForCausalLM"]}, "test")
    scaled = {**LLAMA, "architectures": ["LlamaForCausalLM"], "rope_scaling": {**scaling, "mrope_section": [2, 3, 3]}}
    assert model_spec(scaled, "test") == plain


def test_another_rope_takes_the_place_of_the_configurations_own(tmp_path: Path) -> None:
    """K9: in either form of the configuration; what is not given stays."""
    model = make_model(tmp_path, "Llama", {"rope_parameters": {**YARN_ROPE, "rope_theta": 300.0}})
    expected, native = transformers_logits(model, PROMPTS[:1])[0], bind("cpu")
    make_model(tmp_path, "Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})
    scaling = json.dumps({key: value for key, value in YARN_ROPE.items() if key != "rope_theta"})
    loaded = load(tmp_path, native, rope_scaling=scaling, rope_theta=300.0)
    torch.testing.assert_close(prompt_logits(loaded, native, PROMPTS[:1])[0], expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 500.0, "rope_scaling": {"type": "x"}}))
    assert load(tmp_path, native, rope_scaling=scaling, rope_theta=300.0).spec == loaded.spec
    overrides = json.dumps({"rope_scaling": json.loads(scaling), "rope_theta": 300.0})
    assert load(tmp_path, native, hf_overrides=overrides).spec == loaded.spec
    wider = load(tmp_path, native, rope_scaling="{}", hf_overrides='{"max_position_embeddings": 4096}')
    assert wider.spec.max_position_embeddings == 4096


def test_k9_values_that_replace_the_configurations_are_checked_as_its_own(tmp_path: Path) -> None:
    make_model(tmp_path, "Llama", {})
    for settings, message in (
        ({"hf_overrides": '{"hidden_act": "tanh"}'}, "hidden_act"),
        ({"rope_scaling": '{"rope_type": "spiral"}'}, "rope_type"),
        ({"hf_overrides": '{"num_hidden_layers": 3}'}, "not a complete"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load(tmp_path, bind("cpu"), **settings)


def test_both_parts_of_a_model_that_sees_may_be_in_one() -> None:
    flat = {"architectures": ["Qwen2VLForConditionalGeneration"], "hidden_size": 64, "vision_config": {"depth": 2}}
    options = ModelConfig(model="m", hf_overrides='{"max_position_embeddings": 128}')
    assert overridden(flat, options) == {**flat, "max_position_embeddings": 128}
    parts = {"architectures": ["Qwen2VLForConditionalGeneration"], "text_config": {"hidden_size": 64}}
    assert overridden(parts, options)["text_config"] == {"hidden_size": 64, "max_position_embeddings": 128}


def test_one_rope_cannot_take_the_place_of_several() -> None:
    ropes = {"full_attention": {"rope_theta": 5.0}, "sliding_attention": {"rope_theta": 7.0}}
    with pytest.raises(InvalidConfig, match="rope_parameters"):
        overridden({"rope_parameters": ropes}, ModelConfig(rope_theta=3.0))


@pytest.mark.parametrize("case", ["mistral", "cohere2"])
def test_without_windows_all_is_seen_as_far_as_the_narrowest_reached(case: str, tmp_path: Path) -> None:
    """K9: and layers without positions stay without."""
    family, options = {"mistral": ("Mistral", {"sliding_window": 24}), "cohere2": ("Cohere2", {"sliding_window": 24})}[
        case
    ]
    make_model(tmp_path, family, options)
    native, prompts = bind("cpu"), [prompt[:24] for prompt in PROMPTS]
    with_windows, without = load(tmp_path, native), load(tmp_path, native, disable_sliding_window=True)
    assert without.spec.max_position_embeddings == 24
    assert {cache.window for cache in without.model.program.caches} == {0}
    for ours, expected in zip(*(prompt_logits(each, native, prompts) for each in (without, with_windows)), strict=True):
        assert torch.equal(ours, expected)
