"""More families against transformers: norms, activations, positions and blocks that Llama has not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from models.running import load, prompt_logits
from models.test_families import PROMPTS, make_model, transformers_logits
from octavo.base.errors import CheckpointError
from octavo.models.registry import model_spec
from octavo.ops.run import Runner
from octavo.ops.table import bind

SMALL: dict[str, Any] = {"num_hidden_layers": 2}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "phi": ("Phi", {"num_key_value_heads": 4}),
    "phi-qk-norm": ("Phi", {"qk_layernorm": True, "partial_rotary_factor": 0.25}),
    "olmo": ("Olmo", {"pad_token_id": None}),
    "olmo-tied-biases": ("Olmo", {"pad_token_id": None, "tie_word_embeddings": True, "attention_bias": True}),
    "olmo2": ("Olmo2", {"pad_token_id": None}),
    "olmo3": (
        "Olmo3",
        {
            "pad_token_id": None,
            "num_hidden_layers": 5,
            "sliding_window": 8,
            "rope_parameters": {
                "full_attention": YARN_ROPE,
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    "stablelm": ("StableLm", {}),
    "stablelm-qkv-bias-tied": ("StableLm", {"use_qkv_bias": True, "tie_word_embeddings": True}),
    "stablelm-parallel-qk-norm": ("StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": ("Starcoder2", {}),
    "starcoder2-no-bias-window": ("Starcoder2", {"use_bias": False, "sliding_window": 8, "tie_word_embeddings": False}),
    "opt": ("OPT", {"ffn_dim": 96}),
    "opt-350m": ("OPT", {"ffn_dim": 96, "do_layer_norm_before": False, "word_embed_proj_dim": 32}),
    "opt-no-last-norm": (
        "OPT",
        {
            "ffn_dim": 96,
            "_remove_final_layer_norm": True,
            "enable_bias": False,
            "layer_norm_elementwise_affine": False,
            "activation_function": "gelu",
            "tie_word_embeddings": False,
        },
    ),
    "nemotron": ("Nemotron", {"head_dim": 16}),
    "nemotron-biases": ("Nemotron", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "persimmon": ("Persimmon", {}),
    "persimmon-no-qk-norm": ("Persimmon", {"qk_layernorm": False}),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tiny model's directory, and its logits."""
    family, options = CASES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logits = transformers_logits(make_model(directory, family, {**SMALL, **options}), PROMPTS)
    torch.set_num_threads(threads)
    return directory, logits


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_logits_are_those_of_transformers(saved: tuple[Path, torch.Tensor], impl: Any) -> None:
    directory, expected = saved
    ops = bind("cpu", impl)
    ours = torch.stack(prompt_logits(load(directory, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-4)


def test_chunks_company_and_one_native_call_change_no_bit(saved: tuple[Path, torch.Tensor]) -> None:
    directory, _ = saved
    native = bind("cpu")
    loaded = load(directory, native)
    whole = torch.stack(prompt_logits(loaded, native, PROMPTS))
    assert torch.equal(torch.stack(prompt_logits(loaded, native, PROMPTS, 7)), whole)
    assert torch.equal(prompt_logits(loaded, native, PROMPTS[:1])[0], whole[0])
    one_by_one = dataclasses.replace(native, program_runner=Runner)
    assert torch.equal(torch.stack(prompt_logits(load(directory, one_by_one), one_by_one, PROMPTS)), whole)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("PhiForCausalLM", {"tie_word_embeddings": True}, "tie_word_embeddings = 'True'"),
        ("Olmo2ForCausalLM", {"clip_qkv": 4.0}, "clip_qkv = '4.0'"),
        ("Olmo3ForCausalLM", {"sliding_window": 0}, "sliding_window = '0'"),
        ("NemotronForCausalLM", {"hidden_act": "xielu"}, "hidden_act = 'xielu'"),
    ],
)
def test_options_that_are_not_implemented_are_refused(architecture: str, options: dict[str, Any], message: str) -> None:
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = {**sizes, "num_attention_heads": 4, "max_position_embeddings": 64, "architectures": [architecture]}
    with pytest.raises(CheckpointError, match=message):
        model_spec({**config, **options}, "test")
