"""Configurations of families with experts: the class of transformers, and its options."""

from __future__ import annotations

from typing import Any

import gguf

GPT_OSS_ROPE = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32, "truncate": False,
}  # fmt: skip

#: As Scout has it: nothing between what is stretched and what is not.
LLAMA4_ROPE = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
PHIMOE_ROPE = {
    "rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.3 * i for i in range(8)], "original_max_position_embeddings": 128,
    "short_mscale": 1.25, "long_mscale": 1.25,
}  # fmt: skip

DBRX = {
    "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "rope_parameters": {"rope_theta": 500.0,
    "rope_type": "default"}, "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}  # fmt: skip

EXPERT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": (
        "GptOss",
        {"head_dim": 32, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 48,
         "sliding_window": 8, "rope_parameters": GPT_OSS_ROPE},
    ),
    "gpt-oss-no-biases": (
        "GptOss",
        {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 16,
         "attention_bias": False, "rope_parameters": GPT_OSS_ROPE,
         "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2-moe": (
        "Qwen2Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
         "shared_expert_intermediate_size": 40},
    ),
    "qwen2-moe-sparse": (
        "Qwen2Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True,
         "shared_expert_intermediate_size": 64, "qkv_bias": False, "mlp_only_layers": [1], "tie_word_embeddings": True},
    ),
    "glm4-moe": (
        "Glm4Moe",
        {"head_dim": 32, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "n_group": 4,
         "topk_group": 2, "routed_scaling_factor": 2.5, "use_qk_norm": True, "attention_bias": True},
    ),
    "glm4-moe-no-groups": (
        "Glm4Moe",
        {"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2,
         "norm_topk_prob": False, "first_k_dense_replace": 2},
    ),
    "olmoe": ("Olmoe", {"pad_token_id": None, "num_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48}),
    "olmoe-biases": (
        "Olmoe",
        {"pad_token_id": None, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
         "attention_bias": True},
    ),
    "minimax-m2": (
        "MiniMaxM2",
        {"num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 48, "head_dim": 32, "rotary_dim": 16},
    ),
    "phimoe": (
        "Phimoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "lm_head_bias": True},
    ),
    "phimoe-longrope-window": (
        "Phimoe",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "router_jitter_noise": 0.2, "sliding_window": 8,
         "rope_parameters": PHIMOE_ROPE},
    ),
    "llama4": (
        "Llama4",
        {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 1, "intermediate_size": 48,
         "intermediate_size_mlp": 64, "num_hidden_layers": 4, "attention_chunk_size": 16, "floor_scale": 8,
         "interleave_moe_layer_step": 2, "rope_parameters": LLAMA4_ROPE},
    ),
    "llama4-no-norms": (
        "Llama4",
        {"head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 48,
         "intermediate_size_mlp": 64, "no_rope_layers": [0, 1, 1], "attention_chunk_size": 64, "use_qk_norm": False,
         "attn_temperature_tuning": False, "attention_bias": True},
    ),
    "dbrx": ("Dbrx", {**DBRX, "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.3, "rope_theta": 500.0}}),
    "granite-moe": (
        "GraniteMoe",
        {"num_local_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 48, "embedding_multiplier": 12.0,
         "residual_multiplier": 0.22, "attention_multiplier": 0.15, "logits_scaling": 6.0},
    ),
    "granite-moe-shared": (
        "GraniteMoeShared",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 48, "shared_intermediate_size": 40,
         "attention_bias": True, "residual_multiplier": 0.5, "attention_multiplier": 0.25, "tie_word_embeddings": True},
    ),
    "hunyuan-moe": (
        "HunYuanMoEV1",
        {"head_dim": 32, "num_experts": 5, "moe_topk": 2, "intermediate_size": 48, "attention_bias": True,
         "pad_token_id": None},
    ),
    "ernie-moe": (
        "Ernie4_5_Moe",
        {"moe_num_experts": 6, "moe_k": 3, "moe_intermediate_size": 32, "moe_num_shared_experts": 2},
    ),
    "ernie-moe-biases": (
        "Ernie4_5_Moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 0, "use_bias": True,
         "moe_layer_interval": 2, "moe_layer_start_index": 0, "tie_word_embeddings": False},
    ),
}  # fmt: skip

#: What GGUF calls the families, where its files can hold the case.
EXPERT_ARCHS = {
    "gpt-oss": "gpt-oss", "qwen2-moe": "qwen2moe", "glm4-moe": "glm4moe", "glm4-moe-no-groups": "glm4moe",
    "ernie-moe": "ernie4_5-moe", "olmoe": "olmoe", "minimax-m2": "minimax-m2", "phimoe": "phimoe",
    "hunyuan-moe": "hunyuan-moe", "granite-moe": "granitemoe", "dbrx": "dbrx",
}  # fmt: skip


def write_experts(writer: gguf.GGUFWriter, arch: str, config: Any) -> None:
    """The keys of a GGUF file that belong to the experts, but for how many there are."""
    if arch in ("llama", "olmoe", "phimoe", "minimax-m2", "granitemoe", "dbrx"):
        return
    writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    match arch:
        case "gpt-oss":
            writer.add_sliding_window(config.sliding_window)
        case "llama4":
            writer.add_interleave_moe_layer_step(config.interleave_moe_layer_step)
        case "qwen2moe":
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
        case "glm4moe":
            writer.add_leading_dense_block_count(config.first_k_dense_replace)
            writer.add_expert_shared_count(config.n_shared_experts)
            writer.add_expert_weights_scale(config.routed_scaling_factor)
            writer.add_expert_weights_norm(config.norm_topk_prob)
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
        case "ernie4_5-moe":
            writer.add_leading_dense_block_count(config.moe_layer_start_index)
            writer.add_interleave_moe_layer_step(config.moe_layer_interval)
            writer.add_expert_shared_feed_forward_length(config.moe_intermediate_size * config.moe_num_shared_experts)
