"""A family read from GGUF is the same model: tiny random models of transformers, written in GGUF's conventions."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from models import gemma_gguf
from models.expert_cases import EXPERT_ARCHS, EXPERT_CASES, write_experts
from models.family_cases import (
    LATENT,
    LATENT_LONG_ROPE,
    LFM2_LAYERS,
    LONG_ROPE,
    MINICPM3,
    MSCALE_ROPE,
    PROMPTS,
    make_model,
    transformers_logits,
)
from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.models.checkpoint import SafetensorsCheckpoint
from octavo.models.decoder import define
from octavo.models.gguf_checkpoint import GGUFCheckpoint
from octavo.models.layout import TensorSource
from octavo.models.registry import find_family, model_spec
from octavo.models.rope import inverse_frequencies
from octavo.models.spec import RopeSpec
from octavo.ops.table import bind

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
OLMO3 = {
    "pad_token_id": None,
    "sliding_window": 8,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}
MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.4,
}
WHOLE_ROPE = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {"num_key_value_heads": 1, "attention_bias": False}),
    "llama-rope-factors": ("llama", "Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "qwen2": ("qwen2", "Qwen2", {}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", "Gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma3": ("gemma3", "Gemma3", {**GEMMA, "num_hidden_layers": 7}),
    "gemma": ("gemma", "Gemma", {"head_dim": 32}),
    "mixtral": ("llama", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3-moe": (
        "qwen3moe",
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True},
    ),
    "deepseek-v2-lite": ("deepseek2", "DeepseekV2", {**LATENT, "q_lora_rank": None, "first_k_dense_replace": 1}),
    "lfm2-moe": (
        "lfm2moe",
        "Lfm2Moe",
        {
            "layer_types": LFM2_LAYERS,
            "num_dense_layers": 1,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
        },
    ),
    "lfm2": ("lfm2", "Lfm2", {"layer_types": LFM2_LAYERS, "block_auto_adjust_ff_dim": False}),
    "deepseek-v3": (
        "deepseek2",
        "DeepseekV3",
        {**LATENT, "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2, "rope_parameters": MSCALE_ROPE},
    ),
    **{name: (arch, *EXPERT_CASES[name]) for name, arch in EXPERT_ARCHS.items()},
    # What files do not say is as published: chunks and floors of 8,192.
    "llama4": (
        "llama4",
        "Llama4",
        {
            "head_dim": 32,
            "num_local_experts": 4,
            "intermediate_size": 48,
            "intermediate_size_mlp": 48,
            "num_hidden_layers": 4,
            "interleave_moe_layer_step": 2,
        },
    ),
    "minicpm3": ("minicpm3", "MiniCPM3", {**MINICPM3, "rope_parameters": LATENT_LONG_ROPE}),
    "phi3": ("phi3", "Phi3", {"pad_token_id": None, "sliding_window": 8}),
    "phi3-longrope": ("phi3", "Phi3", {"pad_token_id": None, "rope_parameters": LONG_ROPE}),
    "gpt2": ("gpt2", "GPT2", {}),
    "gpt-neox": ("gptneox", "GPTNeoX", {"rotary_pct": 0.5}),
    "gpt-neox-sequential": ("gptneox", "GPTNeoX", {"use_parallel_residual": False, "rotary_pct": 0.5}),
    "bloom": ("bloom", "Bloom", {}),
    "phi": ("phi2", "Phi", {}),
    "olmo": ("olmo", "Olmo", {"pad_token_id": None, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", "Olmo2", {"pad_token_id": None}),
    "olmo3": ("olmo2", "Olmo3", {**OLMO3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    "stablelm": ("stablelm", "StableLm", {"use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", "StableLm", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": ("starcoder2", "Starcoder2", {}),
    "starcoder2-no-bias": ("starcoder2", "Starcoder2", {"use_bias": False}),
    "nemotron": ("nemotron", "Nemotron", {"head_dim": 16}),
    "mpt": ("mpt", "Mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "attn_config": {"clip_qkv": 1.5}}),
    "minicpm": (
        "minicpm",
        "Granite",
        {"embedding_multiplier": 12.0, "residual_multiplier": 0.5, "logits_scaling": 4.0, "attention_multiplier": 0.25},
    ),
    "orion": ("orion", "StableLm", {"rope_parameters": WHOLE_ROPE}),
    "apertus": ("apertus", "Apertus", {"rope_parameters": LLAMA3_ROPE}),
    "arcee": ("arcee", "Arcee", {"mlp_bias": True}),
    "ministral3": ("mistral3", "Ministral3", {"head_dim": 16, "rope_parameters": MINISTRAL3_ROPE}),
    "hunyuan": ("hunyuan-dense", "HunYuanDenseV1", {"head_dim": 16}),
}
#: How a file of GGUF holds what is several tensors: name of the whole -> names of the parts.
FUSED = {
    "phi3": {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")},
    **{arch: {"post_attention_norm": ("ffn_norm",)} for arch in ("gpt-oss", "glm4moe")},
    "dbrx": {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "attn_output_norm": ("ffn_norm",)},
    **{
        arch: {"attn_qkv": ("attn_q", "attn_k", "attn_v")}
        for arch in ("gpt2", "gptneox", "bloom", "falcon", "starcoder", "qwen", "mpt")
    },
    "chatglm": {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_up": ("ffn_gate", "ffn_up")},
    "glm4": {"ffn_up": ("ffn_gate", "ffn_up")},
}
#: Architectures whose files have pairs of the rotation side by side, where those of transformers have halves.
PERMUTED = (
    "llama", "granite", "granitemoe", "internlm2", "baichuan", "xverse", "smollm3", "olmo", "minicpm", "arcee",
    "mistral3",
)  # fmt: skip
#: Metadata of some architectures: the writer's method, and the key of the configuration.
KEYS = {
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "attention_scale": ("attention_multiplier",),
    "clamp_kqv": ("clip_qkv",),
    "parallel_residual": ("use_parallel_residual",),
}
#: Tensors of experts or heads that a file holds as one, along a dimension of their own.
STACKED = re.compile(r"_(?:exps|norm|[kv]_b)\.")


def interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Rows of each head in the order that GGUF has for llama: pairs side by side."""
    halves = weight.view(num_heads, 2, -1, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    arch: str,
    directory: Path,
    model: Any,
    quantization: gguf.GGMLQuantizationType | None = None,
    sections: list[int] | None = None,
) -> None:
    """The model that transformers saved to `directory`, in GGUF's conventions, as llama.cpp's converter would.
    `quantization`: of the matrices of layers but the router's. `sections`: of positions of several parts."""
    config = model.config
    checkpoint = SafetensorsCheckpoint(directory)
    definition = define(model_spec(checkpoint.config, "test"))
    source = TensorSource(checkpoint, find_family(checkpoint.config, "test").hf, definition)
    writer = gguf.GGUFWriter(path, arch)
    heads = definition.program.caches[0].heads
    write_sizes(writer, arch, config, checkpoint.config, getattr(heads, "num_kv_heads", None))
    if sections is not None:
        writer.add_rope_dimension_sections([*sections, 0])
    values: dict[str, torch.Tensor] = {}
    for tensor in definition.tensors.values():
        # As the checkpoint has it: rows of heads are not yet in the order of the kernels.
        value = source.get(dataclasses.replace(tensor, rotary_dim=0))
        assert isinstance(value, torch.Tensor)
        if arch in PERMUTED and tensor.rotary_dim:
            value = interleaved(value, tensor.shape[0] // tensor.head_dim)
        if arch in ("gemma", "gemma2", "gemma3", "nemotron") and tensor.role == "norm":
            value = value + 1
        value = value.reshape(tensor.shape)
        if "shortconv.conv." in tensor.gguf and value.dim() == 2:
            value = value.t()
        values[tensor.gguf] = value
    for name in ("alpha_p", "alpha_n"):
        learned = [values.pop(key).item() for key in [*values] if key.endswith(f".ffn_act.{name}")]
        if learned:
            getattr(writer, f"add_xielu_{name}")(learned)
    if arch in ("lfm2", "lfm2moe"):
        values["token_embd_norm.weight"] = values.pop("output_norm.weight")
    wholes = fused(values, FUSED.get(arch, {}))
    if arch in gemma_gguf.ARCHS:
        wholes = gemma_gguf.stacked(wholes)
    if arch == "minicpm3":  # keys and values of a head one below the other
        for name in [name for name in wholes if "attn_k_b" in name]:
            parts = wholes.pop(name).transpose(1, 2), wholes.pop(name.replace("_k_b", "_v_b"))
            wholes[name.replace("_k_b", "_kv_b")] = torch.cat(parts, 1).flatten(0, 1)
    for name, value in wholes.items():
        array = np.ascontiguousarray(value.numpy())
        if quantization is not None and array.ndim > 1 and name.startswith("blk.") and "gate_inp" not in name:
            writer.add_tensor(name, gguf.quants.quantize(array, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def fused(values: dict[str, torch.Tensor], wholes: dict[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """Tensors with those put together that a file holds as one: experts, norms of heads, and what `wholes` says."""
    result: dict[str, list[torch.Tensor]] = {}
    for name, value in values.items():
        prefix, _, kind = name.rpartition(".")
        expert = re.fullmatch(r"(.*_(?:exps|norm|[kv]_b))\.\d+", prefix)
        block, _, part = prefix.rpartition(".")
        whole = next((whole for whole, parts in wholes.items() if part in parts), part)
        target = f"{expert[1]}.{kind}" if expert else f"{block}.{whole}.{kind}".removeprefix(".")
        result.setdefault(target, []).append(value)
    return {
        name: parts[0] if len(parts) == 1 else (torch.stack if STACKED.search(name) else torch.cat)(parts)
        for name, parts in result.items()
    }


def write_sizes(
    writer: gguf.GGUFWriter, arch: str, config: Any, saved: dict[str, Any], num_kv_heads: int | None = None
) -> None:
    if arch in gemma_gguf.ARCHS:
        gemma_gguf.write_sizes(writer, arch, config, saved)
        return
    if arch == "dbrx":
        saved = {**saved, **saved["ffn_config"], **saved["attn_config"]}
    num_heads = config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", 128))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(
        saved.get("intermediate_size") or saved.get("n_inner") or saved.get("ffn_hidden_size") or 4 * config.hidden_size
    )
    writer.add_head_count(num_heads)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    write_heads(writer, arch, config, num_kv_heads or getattr(config, "num_key_value_heads", num_heads), head_dim)
    if getattr(config, "rms_norm_eps", None):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    elif arch not in ("lfm2", "lfm2moe"):
        names = ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps")
        writer.add_layer_norm_eps(next((getattr(config, name) for name in names if hasattr(config, name)), 1e-5))
    for method, names in KEYS.items():
        for value in (saved[name] for name in names if saved.get(name) is not None):
            getattr(writer, f"add_{method}")(value)
    if arch in ("exaone4", "olmo2") and saved.get("sliding_window"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in saved["layer_types"]])
    if arch in ("gemma2", "gemma3", "phi3", "cohere2", "exaone4", "olmo2") and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if arch == "mpt":
        writer.add_max_alibi_bias(8.0)
        writer.add_clamp_kqv(config.attn_config.clip_qkv)
    if arch == "deepseek2":
        write_latent(writer, config)
        return
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    num_experts = saved.get("moe_num_experts", num_experts)
    if num_experts:
        writer.add_expert_count(num_experts)
        writer.add_expert_used_count(saved.get("moe_top_k") or config.num_experts_per_tok)
        write_experts(writer, arch, config)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        write_rope(writer, rope.get("full_attention", rope), head_dim)


def write_heads(writer: gguf.GGUFWriter, arch: str, config: Any, num_kv_heads: int, head_dim: int) -> None:
    if arch == "deepseek2":
        return  # see write_latent
    if arch == "minicpm3":
        writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_kv_lora_rank(config.kv_lora_rank)
        writer.add_key_length(config.qk_nope_head_dim + config.qk_rope_head_dim)
        return
    counts: int | list[int] = num_kv_heads
    if arch in ("lfm2", "lfm2moe"):
        counts = [num_kv_heads if kind == "full_attention" else 0 for kind in config.layer_types]
        writer.add_shortconv_l_cache(config.conv_L_cache)
        writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_head_count_kv(counts)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)


def write_latent(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_head_count_kv(1)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if config.q_lora_rank:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_leading_dense_block_count(config.first_k_dense_replace)
    writer.add_expert_count(config.n_routed_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    is_v3 = config.model_type == "deepseek_v3"
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if is_v3 else gguf.ExpertGatingFuncType.SOFTMAX)
    if is_v3:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])


def write_rope(writer: gguf.GGUFWriter, rope: dict[str, Any], head_dim: int) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] == "llama3":
        scaled = RopeSpec(**{"kind" if k == "rope_type" else k.removeprefix("rope_"): v for k, v in rope.items()})
        plain = inverse_frequencies(RopeSpec(theta=scaled.theta), head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / inverse_frequencies(scaled, head_dim)).numpy())
    if "llama_4_scaling_beta" in rope:
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
        writer.add_rope_scaling_yarn_log_mul(rope["mscale_all_dim"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        for kind in ("short", "long"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


@pytest.mark.parametrize("case", CASES)
def test_gguf_holds_the_same_model(case: str, tmp_path: Path) -> None:
    arch, family, options = CASES[case]
    model = make_model(tmp_path / "hf", family, options)
    path = tmp_path / "model.gguf"
    write_gguf(path, arch, tmp_path / "hf", model)
    ops = bind("cpu", "reference")
    loaded = load(path, ops)
    ours = torch.stack(prompt_logits(loaded, ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("quantization", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1])
def test_quantized_experts_are_computed_as_they_are(quantization: gguf.GGMLQuantizationType, tmp_path: Path) -> None:
    """Natively, with integer weights, as the reference does with their values; and no row minds its company."""
    model = make_model(tmp_path / "hf", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2})
    path = tmp_path / "model.gguf"
    write_gguf(path, "llama", tmp_path / "hf", model, quantization)
    native, reference = bind("cpu"), bind("cpu", "reference")
    loaded, exact = load(path, native), load(path, reference)
    assert loaded.weight_bytes < 0.5 * exact.weight_bytes, "kept as floats"
    whole = torch.stack(prompt_logits(loaded, native, PROMPTS))
    # Activations are quantized to 8 bits, which sends a few tokens to other experts.
    expected = torch.stack(prompt_logits(exact, reference, PROMPTS))
    assert ((whole - expected).norm(dim=-1) / expected.norm(dim=-1)).median() < 0.06
    assert torch.equal(torch.stack(prompt_logits(loaded, native, PROMPTS, 7)), whole)
    assert torch.equal(prompt_logits(loaded, native, PROMPTS[:1])[0], whole[0])


def test_older_files_hold_the_matrices_of_latents_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantized, too: those of keys are then computed with as floats."""

    newer = fused

    def as_one(values: dict[str, torch.Tensor], wholes: dict[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
        result = newer(values, wholes)
        for name in [name for name in result if "attn_k_b" in name]:
            keys, vs = result.pop(name).transpose(1, 2), result.pop(name.replace("k_b", "v_b"))
            result[name.replace("k_b", "kv_b")] = torch.cat((keys, vs), 1).flatten(0, 1)
        return result

    _, family, options = CASES["deepseek-v2-lite"]
    model = make_model(tmp_path / "hf", family, {**options, "v_head_dim": 24, "moe_intermediate_size": 64})
    write_gguf(tmp_path / "new.gguf", "deepseek2", tmp_path / "hf", model)
    ops = bind("cpu", "reference")
    expected = torch.stack(prompt_logits(load(tmp_path / "new.gguf", ops), ops, PROMPTS))
    monkeypatch.setitem(globals(), "fused", as_one)
    write_gguf(tmp_path / "old.gguf", "deepseek2", tmp_path / "hf", model)
    assert "blk.0.attn_kv_b.weight" in GGUFCheckpoint(tmp_path / "old.gguf").names()
    assert torch.equal(torch.stack(prompt_logits(load(tmp_path / "old.gguf", ops), ops, PROMPTS)), expected)
    write_gguf(tmp_path / "q8.gguf", "deepseek2", tmp_path / "hf", model, gguf.GGMLQuantizationType.Q8_0)
    native = bind()
    loaded = load(tmp_path / "q8.gguf", native)
    whole = torch.stack(prompt_logits(loaded, native, PROMPTS))
    assert ((whole - expected).norm(dim=-1) / expected.norm(dim=-1)).median() < 0.06
    assert torch.equal(torch.stack(prompt_logits(loaded, native, PROMPTS, 7)), whole)


def metadata_of(arch: str = "llama", **changes: Any) -> dict[str, Any]:
    values = {
        "block_count": 1, "context_length": 64, "embedding_length": 64, "feed_forward_length": 64,
        "attention.head_count": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    return {f"{arch}.{key}": value for key, value in {**values, **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("arch", "changes", "message"),
    [
        ("rwkv7", {}, "'rwkv7' is not supported"),
        ("llama", {"expert_count": 8}, "not a complete mixtral model"),
        ("llama", {"rope.dimension_count": 16}, "rope.dimension_count"),
        ("gptneox", {"rope.dimension_count": 8, "attention.head_count": None}, "rope.dimension_count"),
        ("gptneox", {"rope.dimension_count": "8"}, "rope.dimension_count"),
        ("gptneox", {"rope.dimension_count": 64}, "partial_rotary_factor"),
        ("llama", {"rope.scaling.type": "longrope"}, "short_factor"),
        ("llama", {"attention.key_length": 32, "attention.value_length": 16}, "keys and values"),
        ("llama", {"attention.head_count": [2, 1]}, "layers of different sizes"),
        ("llama", {"embedding_length": None}, "hidden_size"),
        ("llama", {"block_count": 0}, "num_hidden_layers"),
        ("glm4moe", {"expert_count": 2, "block_count": "2", "nextn_predict_layers": 1}, "num_hidden_layers"),
        (
            "nemotron_h",
            {"block_count": "2", "feed_forward_length": [64], "attention.head_count_kv": []},
            "head_count_kv does not say",
        ),
        ("qwen2", {"attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    arch: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata_of(arch, **changes).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        add[type(value)](key, value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=message) as error:
        load(path, bind("cpu", "reference"))
    assert str(path) in error.value.message


def test_a_split_model_is_read_from_its_first_part(tmp_path: Path) -> None:
    model = make_model(tmp_path / "hf", "Llama", {})
    whole = tmp_path / "whole.gguf"
    write_gguf(whole, "llama", tmp_path / "hf", model)
    source = GGUFCheckpoint(whole)
    reader = gguf.GGUFReader(whole)
    for number in (1, 2):
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{number}-of-00002.gguf", "llama")
        writer.add_uint16("split.count", 2)
        if number == 1:
            for key, field in reader.fields.items():
                if key.startswith("llama."):
                    (writer.add_float32 if isinstance(field.contents(), float) else writer.add_uint32)(
                        key, field.contents()
                    )
        for index, tensor in enumerate(reader.tensors):
            if index % 2 == number - 1:
                writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    split = GGUFCheckpoint(tmp_path / "m-00001-of-00002.gguf")
    assert sorted(split.names()) == sorted(source.names())
    name = "blk.1.ffn_up.weight"
    ours, theirs = split.get(name), source.get(name)
    assert isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)
    assert torch.equal(ours, theirs)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00002\.gguf.*missing"):
        GGUFCheckpoint(tmp_path / "m-00001-of-00002.gguf")
