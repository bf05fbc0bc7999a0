"""Families with experts beyond what transformers has: MXFP4, layers that guess, and families without a class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models.expert_cases import EXPERT_CASES
from models.family_cases import PROMPTS, make_model, transformers_logits
from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.ops.table import bind
from octavo.quant import mxfp4
from octavo.quant.gguf_types import transcode
from support import expert_references

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def test_mxfp4_keeps_every_value() -> None:
    """All codes at all scales but that of no number; the largest magnitudes are infinite in float32 on both sides."""
    codes = torch.arange(32) % 16
    blocks = (codes[0::2] | codes[1::2] << 4).to(torch.uint8).expand(255, 1, 16)
    scales = torch.arange(255, dtype=torch.uint8).view(255, 1)
    found = mxfp4.transcode(blocks, scales)
    expected = FP4[codes].double() * torch.pow(2.0, torch.arange(255).double() - 127)[:, None]
    assert found.shape == (255, 32)
    assert torch.equal(found.dequantize(), expected.float())
    assert found.is_finite() and not mxfp4.transcode(blocks[:1], torch.full((1, 1), 255, dtype=torch.uint8)).is_finite()


def test_mxfp4_of_gguf_is_that_of_its_library() -> None:
    generator = np.random.default_rng(5)
    rows = generator.integers(0, 256, (12, 3 * 17), dtype=np.uint8)
    rows[:, ::17] = generator.integers(100, 140, (12, 3))
    found = transcode(memoryview(rows.tobytes()), "MXFP4", (12, 96), "test")
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.MXFP4)
    assert not isinstance(found, torch.Tensor) and torch.equal(found.dequantize(), torch.from_numpy(expected))


def in_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks, scales and what they stand for, of [E, K, N] as the class has it: [E, N, K]."""
    grouped = weight.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(grouped.abs().amax(-1))) - 2
    codes = ((grouped / torch.exp2(exponents)[..., None]).unsqueeze(-1) - FP4).abs().argmin(-1)
    values = FP4[codes] * torch.exp2(exponents)[..., None]
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    return blocks, (exponents + 127).to(torch.uint8), values.flatten(-2).transpose(1, 2)


@pytest.mark.parametrize("impl", ["reference", "auto"])
def test_gpt_oss_in_mxfp4(impl: Any, tmp_path: Path) -> None:
    """As it was published: experts in blocks, the rest as floats."""
    family, options = EXPERT_CASES["gpt-oss"]
    model = make_model(tmp_path, family, {**options, "num_hidden_layers": 2, "intermediate_size": 64})
    tensors = load_file(tmp_path / "model.safetensors")
    for number, layer in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            parameter, stem = getattr(layer.mlp.experts, name), f"model.layers.{number}.mlp.experts.{name}"
            blocks, scales, values = in_mxfp4(parameter.data)
            parameter.data = values.contiguous()
            del tensors[stem]
            tensors |= {f"{stem}_blocks": blocks.contiguous(), f"{stem}_scales": scales.contiguous()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ops = bind("cpu", impl)
    loaded = load(tmp_path, ops)
    assert loaded.quantization == "MXFP4 x4"
    ours, expected = torch.stack(prompt_logits(loaded, ops, PROMPTS)), transformers_logits(model, PROMPTS)
    if impl == "reference":
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    else:  # activations are quantized to 8 bits, which sends a few tokens to other experts
        assert ((ours - expected).norm(dim=-1) / expected.norm(dim=-1)).median() < 0.06
        assert torch.equal(torch.stack(prompt_logits(loaded, ops, PROMPTS, 7)), ours)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    pickled = load(tmp_path, ops, load_format="pt")
    assert torch.equal(torch.stack(prompt_logits(pickled, ops, PROMPTS)), ours)
    tensors["model.layers.0.mlp.experts.down_proj_scales"] = tensors["model.layers.0.mlp.experts.down_proj_scales"][:2]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="down_proj_blocks"):
        load(tmp_path, ops)


SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "max_position_embeddings": 64, "rope_theta": 500.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "intermediate_size": 40, "num_experts_per_tok": 2,
}  # fmt: skip
DEEPSEEK = {
    "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "n_routed_experts": 5, "n_shared_experts": 2,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1, "moe_layer_freq": 1, "scoring_func": "softmax",
}  # fmt: skip
ARCTIC = {
    "architectures": ["ArcticForCausalLM"], "model_type": "arctic", "num_local_experts": 4, "moe_layer_frequency": 1,
    "parallel_attn_mlp_res": True, "use_residual": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "family", [{**DEEPSEEK, "norm_topk_prob": False}, {**DEEPSEEK, "norm_topk_prob": True}, ARCTIC]
)
def test_logits_are_those_of_the_published_descriptions(family: dict[str, Any], tmp_path: Path) -> None:
    config = {**SIZES, **family}
    weights = expert_references.random_weights(expert_references.shapes_of(config))
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    ops = bind("cpu", "reference")
    for prompt, ours in zip(PROMPTS, prompt_logits(load(tmp_path, ops), ops, PROMPTS), strict=True):
        torch.testing.assert_close(ours, expert_references.logits(config, weights, prompt), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "window"), [({}, 8192), ({"attention_chunk_size": None}, 0), ({"attention_chunk_size": 64}, 64)]
)
def test_llama_4_without_a_size_of_chunks_sees_whole_contexts(given: dict[str, Any], window: int) -> None:
    """Null is not what an absent key is."""
    config = {
        "architectures": ["Llama4ForCausalLM"], "vocab_size": 32, "hidden_size": 64, "intermediate_size": 48,
        "intermediate_size_mlp": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_local_experts": 4,
        "max_position_embeddings": 128,
    }  # fmt: skip
    program = define(model_spec({**config, **given}, "here")).program
    assert [(cache.window, cache.chunked) for cache in program.caches] == [(window, window > 0)] * 3 + [(0, False)]


def test_layers_that_guess_are_ignored(tmp_path: Path) -> None:
    expected = transformers_logits(make_model(tmp_path, *EXPERT_CASES["glm4-moe-no-groups"]), PROMPTS)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({**tensors, "model.layers.3.eh_proj.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    save_file({**tensors, "model.layers.2.eh_proj.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="unexpected"):
        load(tmp_path, ops)


def test_experts_may_stand_in_one_tensor(tmp_path: Path) -> None:
    """As newer tools save them, too."""
    model = make_model(tmp_path, *EXPERT_CASES["qwen2-moe"])
    tensors = {name: t for name, t in load_file(tmp_path / "model.safetensors").items() if ".experts." not in name}
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            tensors[name] = parameter.data.clone()
    save_file(tensors, tmp_path / "model.safetensors")
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("gpt-oss", {"swiglu_limit": 5.0}, "swiglu_limit = '5.0'"),
        ("qwen2-moe", {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}, "use_sliding_window"),
        ("qwen2-moe", {"mlp_only_layers": ["1"]}, "mlp_only_layers"),
        ("glm4-moe", {"n_group": 3}, "n_group = '3' does not divide"),
        ("glm4-moe", {"topk_group": 1}, "topk_group = '1' leaves too few"),
        ("ernie-moe", {"moe_norm_min": 0.1}, "moe_norm_min"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    case: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_model(tmp_path, *EXPERT_CASES[case])
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, bind("cpu", "reference"))
