"""Gemma 3n and 4 in GGUF's conventions, as llama.cpp's converter writes them."""

from __future__ import annotations

from typing import Any

import gguf
import torch

ARCHS = ("gemma3n", "gemma4")


def write_sizes(writer: gguf.GGUFWriter, arch: str, config: Any, saved: dict[str, Any]) -> None:
    config.allow_global_per_layer_attribute_access = True
    is_windowed = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(saved["intermediate_size"])
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern(is_windowed)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    ropes = config.rope_parameters
    writer.add_rope_freq_base(ropes["full_attention"]["rope_theta"])
    if arch == "gemma3n":
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_altup_active_idx(config.altup_active_idx)
        writer.add_altup_num_inputs(config.altup_num_inputs)
        shares = torch.tensor(config.activation_sparsity_pattern)
        writer.add_activation_sparsity_scale(torch.distributions.Normal(0, 1).icdf(shares).tolist())
        return
    layers = [config.per_layer_config[number] for number in range(config.num_hidden_layers)]
    full = next(layer for layer, windowed in zip(layers, is_windowed, strict=True) if not windowed)
    writer.add_head_count_kv([layer.num_key_value_heads for layer in layers])
    writer.add_key_length(full.head_dim)
    writer.add_value_length(full.head_dim)
    writer.add_key_length_swa(config.head_dim)
    writer.add_value_length_swa(config.head_dim)
    writer.add_rope_dimension_count(full.head_dim)
    writer.add_rope_dimension_count_swa(config.head_dim)
    turning = int(full.head_dim * ropes["full_attention"]["partial_rotary_factor"] / 2)
    factors = torch.tensor([1.0] * turning + [1e30] * (full.head_dim // 2 - turning))
    writer.add_tensor("rope_freqs.weight", factors.numpy())
    if config.enable_moe_block:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def stacked(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors with those put together that a file holds as one, of experts already stacked; scales have no suffix."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        prefix, _, number = name.removesuffix(".weight").rpartition(".")
        if prefix in ("altup_proj", "altup_unembd_proj"):
            result.setdefault(f"{prefix}.weight", []).append(value)
        elif "ffn_gate_exps" in name:
            up = values[name.replace("ffn_gate_exps", "ffn_up_exps")]
            result[name.replace("ffn_gate_exps", "ffn_gate_up_exps")] = torch.cat((value, up), 1)
        elif "ffn_up_exps" not in name:
            result[name.removesuffix(".weight") if number == "scale" else name] = value
    return {name: torch.stack(value) if isinstance(value, list) else value for name, value in result.items()}
