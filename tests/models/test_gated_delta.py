"""Models with gated delta nets: files of GGUF as llama.cpp writes them, what is ignored, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from models.family_cases import DELTA, DELTA_EXPERTS, PROMPTS, SIZES, make_model, transformers_logits
from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.models.registry import model_spec
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")

#: Every second layer has attention, which files of GGUF say in this form.
LAYERS: dict[str, Any] = {**DELTA, "layer_types": None, "full_attention_interval": 2}
FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3next": ("Qwen3Next", {**LAYERS, **DELTA_EXPERTS}),
    "qwen35": ("Qwen3_5", {**LAYERS, "tie_word_embeddings": True}),
    "qwen35moe": ("Qwen3_5Moe", {**LAYERS, **DELTA_EXPERTS}),
}


def tiled(value: torch.Tensor, config: Any, head_dim: int, dim: int = 0) -> torch.Tensor:
    """Heads of values that read the same key head, as many heads apart as there are key heads."""
    shape = list(value.shape)
    groups = [config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads, head_dim]
    return value.reshape(shape[:dim] + groups + shape[dim + 1 :]).transpose(dim, dim + 1).reshape(shape)


def converted(name: str, value: torch.Tensor, config: Any, is_tiled: bool) -> dict[str, torch.Tensor]:
    """A tensor of the model in memory, as llama.cpp's converter has it before it renames it."""
    key_dim, value_dim = config.linear_key_head_dim, config.linear_value_head_dim
    keys, per_key = config.linear_num_key_heads * key_dim, config.linear_num_value_heads // config.linear_num_key_heads

    def heads(value: torch.Tensor, head_dim: int, first: int = 0) -> torch.Tensor:
        return torch.cat((value[:first], tiled(value[first:], config, head_dim))) if is_tiled else value

    prefix, _, kind = name.rpartition(".")
    if name.endswith("in_proj_qkvz.weight"):
        by_head = value.view(config.linear_num_key_heads, -1, value.shape[1])
        q, k, v, z = by_head.split((key_dim, key_dim, per_key * value_dim, per_key * value_dim), dim=1)
        qkv = torch.cat([part.flatten(0, 1) for part in (q, k, v)])
        return {name.replace("qkvz", "qkv"): qkv, name.replace("qkvz", "z"): z.flatten(0, 1)}
    if "experts." in name and kind == "gate_up_proj":
        gate, up = value.chunk(2, dim=1)
        return {f"{prefix}.gate_proj.weight": gate, f"{prefix}.up_proj.weight": up}
    if "experts." in name and kind == "down_proj":
        return {f"{name}.weight": value}
    if kind == "A_log":
        return {name: heads(-value.exp(), 1)}
    if kind == "dt_bias":
        return {f"{prefix}.dt_proj.bias": heads(value, 1)}
    if "conv1d" in name:
        return {name: heads(value.squeeze(1), value_dim, 2 * keys)}
    if "in_proj_qkv." in name:
        return {name: heads(value, value_dim, 2 * keys)}
    if "in_proj_z." in name:
        return {name: heads(value, value_dim)}
    if "in_proj_a." in name or "in_proj_b." in name:
        return {name: heads(value, 1)}
    if "linear_attn.out_proj" in name:
        return {name: tiled(value, config, value_dim, 1) if is_tiled else value}
    if name.endswith("norm.weight") and "linear_attn" not in name:
        return {name: value + 1}
    return {name: value}


def write_file(path: Path, arch: str, model: Any, options: dict[str, Any], has_drafts: bool, is_old: bool) -> None:
    config, layers = model.config, SIZES["num_hidden_layers"]
    names = gguf.get_tensor_name_map(next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), layers)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(layers + has_drafts)
    if has_drafts:
        writer.add_nextn_predict_layers(1)
        writer.add_tensor(f"blk.{layers}.nextn.eh_proj.weight", torch.ones(4, 4).numpy())
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(int(config.head_dim * config.rope_parameters["partial_rotary_factor"]))
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(options["full_attention_interval"])
    if "num_experts" in options:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if arch != "qwen35moe":
        writer.add_feed_forward_length(config.intermediate_size)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if is_old and "qkvz" in name:
            parts = {name: value}
        else:
            parts = converted(name, value, config, arch != "qwen3next")
        for part, stored in parts.items():
            found = names.get_name(part, try_suffixes=(".weight", ".bias"))
            assert found is not None, part
            writer.add_tensor(found, stored.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("arch", "has_drafts", "is_old"),
    [("qwen3next", False, False), ("qwen3next", False, True), ("qwen35", True, False), ("qwen35moe", False, False)],
)
def test_gguf_holds_the_same_model(arch: str, has_drafts: bool, is_old: bool, tmp_path: Path) -> None:
    family, options = FILES[arch]
    model = make_model(tmp_path / "hf", family, options)
    write_file(tmp_path / "model.gguf", arch, model, options, has_drafts, is_old)
    ops = bind()
    loaded = load(tmp_path / "model.gguf", ops)
    ours = torch.stack(prompt_logits(loaded, ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_a_model_of_states_alone_keeps_no_keys(tmp_path: Path) -> None:
    model = make_model(tmp_path, "Qwen3Next", {**DELTA, **DELTA_EXPERTS, "layer_types": ["linear_attention"] * 3})
    model.config.use_cache = False  # transformers counts the keys of one
    ops = bind()
    loaded = load(tmp_path, ops)
    assert loaded.model.definition.cache_groups == ()
    ours = torch.stack(prompt_logits(loaded, ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.stack(prompt_logits(loaded, ops, PROMPTS, 7)), ours)


def test_tensors_that_guess_further_tokens_are_ignored(tmp_path: Path) -> None:
    make_model(tmp_path, "Qwen3_5", {**DELTA, "num_hidden_layers": 3})
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "mtp.fc.weight": torch.ones(4, 8), "mtp.layers.0.mlp.up_proj.weight": torch.ones(4, 4)}, path)
    load(tmp_path, bind())
    save_file({**tensors, "model.mtq.weight": torch.ones(4)}, path)
    with pytest.raises(CheckpointError, match=r"unexpected tensor: model\.mtq\.weight"):
        load(tmp_path, bind())


def test_of_a_model_that_sees_the_text_part_is_served(tmp_path: Path) -> None:
    """Of a text's tokens the three parts of a position are equal."""
    rope = {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5, "mrope_section": [3, 3, 2],
            "mrope_interleaved": True}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64,
              "num_position_embeddings": 16}  # fmt: skip
    text = {**SIZES, **DELTA, "rope_parameters": rope}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    torch.manual_seed(0)
    model = transformers.Qwen3_5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.15 * torch.randn(parameter.shape) + ("linear_attn.norm" in name))
    model.save_pretrained(tmp_path)
    ops = bind()
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS, chunk=20))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


NEXT: dict[str, Any] = {**SIZES, **DELTA, **DELTA_EXPERTS, "architectures": ["Qwen3NextForCausalLM"]}
OLMO: dict[str, Any] = {**SIZES, "layer_types": DELTA["layer_types"], "architectures": ["OlmoHybridForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (NEXT, {"layer_types": ["linear_attention", "full_attention", "mamba"]}, "layer_types: 'mamba'"),
        (NEXT, {"hidden_act": "gelu"}, "hidden_act"),
        (NEXT, {"attn_output_gate": False}, "attn_output_gate"),
        (NEXT, {"use_sliding_window": True}, "use_sliding_window"),
        (NEXT, {"linear_num_key_heads": 4}, "linear_num_key_heads.*does not divide the 6 heads"),
        (NEXT, {"linear_key_head_dim": 4096}, "linear_key_head_dim"),
        (NEXT, {"linear_conv_kernel_dim": 9}, "linear_conv_kernel_dim"),
        (OLMO, {"linear_num_key_heads": 3}, "linear_num_key_heads"),
        (OLMO, {"layer_types": ["full_attention", "sliding_attention", "linear_attention"]}, "'sliding_attention'"),
    ],
)
def test_options_that_are_not_implemented_are_refused(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    model_spec(config, "test")
    with pytest.raises(CheckpointError, match=message):
        model_spec({**config, **changes}, "test")
