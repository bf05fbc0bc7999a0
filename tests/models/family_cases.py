"""Tiny random models of transformers: whose logits the families are tested by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from models.expert_cases import EXPERT_CASES

PROMPT_LENGTH = 45
PROMPTS = [
    torch.randint(0, 96, (PROMPT_LENGTH,), generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)
]
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [1.5 + 0.3 * i for i in range(8)],
    "original_max_position_embeddings": 32,
}
MSCALE_ROPE = {**YARN_ROPE, "mscale": 0.9, "mscale_all_dim": 0.9}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
    "v_head_dim": 20,
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "n_shared_experts": 2,
}
MINICPM3: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 24,
}
LATENT_LONG_ROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.2 * i for i in range(8)],
}
HYBRID: dict[str, Any] = {
    "intermediate_size": 48,
    "shared_intermediate_size": 40,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "mamba_n_heads": 4,
    "mamba_n_groups": 2,
    "mamba_d_state": 24,
    "mamba_d_conv": 3,
}
JAMBA: dict[str, Any] = {
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "mamba_d_state": 8,
    "mamba_dt_rank": 6,
    "use_mamba_kernels": False,
    "use_associative_scan": False,
}
DELTA: dict[str, Any] = {
    "head_dim": 32,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
}
DELTA_EXPERTS: dict[str, Any] = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
MAMBA: dict[str, Any] = {"state_size": 8, "time_step_rank": 6, "conv_kernel": 3}
MAMBA_2: dict[str, Any] = {"state_size": 16, "num_heads": 8, "head_dim": 16, "n_groups": 2}
FALCON_H1: dict[str, Any] = {
    "mamba_d_ssm": 96, "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 24, "mamba_d_conv": 3,
    "head_dim": 16, "pad_token_id": None,
}  # fmt: skip
FALCON_H1_FACTORS: dict[str, Any] = {
    "embedding_multiplier": 5.0, "lm_head_multiplier": 0.25, "mlp_multipliers": [0.75, 0.3], "key_multiplier": 0.4,
    "attention_in_multiplier": 1.25, "attention_out_multiplier": 0.9, "ssm_in_multiplier": 1.5,
    "ssm_out_multiplier": 0.6, "ssm_multipliers": [0.7, 1.4, 0.8, 1.3, 0.5],
}  # fmt: skip
BAMBA: dict[str, Any] = {
    "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_n_groups": 2, "mamba_d_state": 24, "pad_token_id": None,
}  # fmt: skip
NEMOTRON_EXPERTS: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], "head_dim": 16, "mamba_num_heads": 4,
    "mamba_head_dim": 20, "n_groups": 2, "ssm_state_size": 16, "n_routed_experts": 6, "num_experts_per_tok": 3,
    "moe_intermediate_size": 48, "moe_shared_expert_intermediate_size": 40, "routed_scaling_factor": 2.5,
}  # fmt: skip
LFM2_LAYERS = ["conv", "full_attention", "conv"]
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5_000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

#: Sizes that a family's configuration does not have.
FOREIGN: dict[str, tuple[str, ...]] = {
    "GPT2": ("num_key_value_heads", "intermediate_size"),
    "GPTNeoX": ("num_key_value_heads",),
    "GPTJ": ("num_key_value_heads", "intermediate_size"),
    "GPTBigCode": ("num_key_value_heads", "intermediate_size"),
    "Falcon": ("num_key_value_heads", "intermediate_size"),
    "Dbrx": (
        "num_key_value_heads",
        "intermediate_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ),
    "Bloom": ("num_key_value_heads", "intermediate_size", "max_position_embeddings"),
    "OPT": ("num_key_value_heads", "intermediate_size"),
    "Persimmon": ("num_key_value_heads",),
    **dict.fromkeys(
        ("Mamba", "FalconMamba", "Mamba2"),
        ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
    ),
    "Mpt": (
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
        "hidden_size",
        "num_attention_heads",
    ),
}


#: Models whose names do not follow from their configuration's.
CLASSES = {"GPT2": "GPT2LMHeadModel", "InternLM3": "LlamaForCausalLM"}

#: Whose norms are around zero.
OFFSET_NORMS = (
    "Gemma", "Gemma2", "Gemma3", "Nemotron", "NemotronH", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe",
)  # fmt: skip

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied-llama3-rope": ("Llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope-biases": ("Llama", {"rope_parameters": LINEAR_ROPE, "attention_bias": True, "mlp_bias": True}),
    "llama-yarn-rope": ("Llama", {"rope_parameters": YARN_ROPE}),
    "llama-wide-heads": ("Llama", {"head_dim": 32, "num_key_value_heads": 4}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-5}),
    "qwen2-tied-upper-windows": (
        "Qwen2",
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-tied-biases": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 32, "sliding_window": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3",
        {"num_hidden_layers": 7, "head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 24},
    ),
    "gemma3-softcap-ropes-untied": (
        "Gemma3",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": GEMMA_ROPES,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gpt2": ("GPT2", {}),
    "gpt2-untied-inner": ("GPT2", {"n_inner": 96, "tie_word_embeddings": False, "activation_function": "relu"}),
    "gpt-neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "gpt-neox-sequential-no-bias": (
        "GPTNeoX",
        {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_new", "rotary_pct": 0.25},
    ),
    "bloom": ("Bloom", {}),
    "bloom-12-heads": ("Bloom", {"hidden_size": 96, "n_head": 12, "num_attention_heads": 12}),
    "phi3": ("Phi3", {"pad_token_id": None}),
    "phi3-longrope": (
        "Phi3",
        {
            "pad_token_id": None,
            "rope_parameters": LONG_ROPE,
            "max_position_embeddings": 96,
            "original_max_position_embeddings": 32,
        },
    ),
    "phi3-longrope-partial-window": (
        "Phi3",
        {
            "pad_token_id": None,
            "rope_parameters": {
                **LONG_ROPE,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.2] * 8,
                "long_factor": [2.5] * 8,
            },
            "max_position_embeddings": 96,
            "original_max_position_embeddings": 32,
            "sliding_window": 8,
            "hidden_size": 128,
        },
    ),
    "qwen3-moe": (
        "Qwen3Moe",
        {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
    ),
    "qwen3-moe-renormalized-sparse": (
        "Qwen3Moe",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
        },
    ),
    "deepseek-v2-dense": ("DeepseekV2", {**LATENT, "q_lora_rank": 40, "first_k_dense_replace": 3}),
    "deepseek-v2-lite-yarn": (
        "DeepseekV2",
        {
            **LATENT,
            "q_lora_rank": None,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "rope_parameters": MSCALE_ROPE,
        },
    ),
    "deepseek-v2-unshared-mscale": (
        "DeepseekV2",
        {
            **LATENT,
            "kv_lora_rank": 48,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "n_shared_experts": 1,
            "rope_parameters": {**MSCALE_ROPE, "mscale": 0.7},
        },
    ),
    "deepseek-v2-groups": (
        "DeepseekV2",
        {
            **LATENT,
            "topk_method": "group_limited_greedy",
            "n_group": 3,
            "topk_group": 2,
            "routed_scaling_factor": 2.0,
            "n_shared_experts": 1,
        },
    ),
    "deepseek-v3": (
        "DeepseekV3",
        {**LATENT, "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2, "rope_parameters": MSCALE_ROPE},
    ),
    "deepseek-v3-one-group": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False, "attention_bias": True},
    ),
    "lfm2": ("Lfm2", {"layer_types": LFM2_LAYERS, "block_multiple_of": 32}),
    "lfm2-biases-4-taps": (
        "Lfm2",
        {"layer_types": LFM2_LAYERS[::-1], "conv_bias": True, "conv_L_cache": 4, "block_auto_adjust_ff_dim": False},
    ),
    "lfm2-moe": (
        "Lfm2Moe",
        {
            "layer_types": LFM2_LAYERS,
            "num_dense_layers": 1,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 48,
        },
    ),
    "lfm2-moe-no-bias": (
        "Lfm2Moe",
        {
            "layer_types": LFM2_LAYERS,
            "num_dense_layers": 0,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 48,
            "use_expert_bias": False,
            "norm_topk_prob": False,
        },
    ),
    "glm-4.7-flash": ("Glm4MoeLite", {**LATENT, "mlp_layer_types": ["dense", "dense", "sparse"]}),
    "minicpm3": ("MiniCPM3", {**MINICPM3, "tie_word_embeddings": False, "dim_model_base": 16}),
    "minicpm3-longrope": (
        "MiniCPM3",
        {
            **MINICPM3,
            "q_lora_rank": None,
            "v_head_dim": 24,
            "attention_bias": True,
            "rope_parameters": LATENT_LONG_ROPE,
        },
    ),
    "granite-hybrid": (
        "GraniteMoeHybrid",
        {
            **HYBRID,
            "num_local_experts": 4,
            "position_embedding_type": "rope",
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 6.0,
            "logits_scaling": 3.0,
        },
    ),
    "granite-hybrid-dense": (
        "GraniteMoeHybrid",
        {
            **HYBRID,
            "num_local_experts": 0,
            "mamba_n_groups": 1,
            "mamba_n_heads": 2,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "nemotron-h": (
        "NemotronH",
        {
            "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention"],
            "head_dim": 16,
            "mamba_num_heads": 4,
            "mamba_head_dim": 20,
            "n_groups": 2,
            "ssm_state_size": 16,
            "conv_kernel": 4,
            "mlp_bias": True,
        },
    ),
    "qwen3-next": ("Qwen3Next", {**DELTA, **DELTA_EXPERTS}),
    "qwen3-next-every-second-layer": (
        "Qwen3Next",
        {
            **DELTA,
            **DELTA_EXPERTS,
            "layer_types": None,
            "full_attention_interval": 2,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "attention_bias": True,
            "linear_conv_kernel_dim": 3,
            "linear_num_value_heads": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {**YARN_ROPE, "partial_rotary_factor": 0.5},
        },
    ),
    "qwen3.5": ("Qwen3_5", {**DELTA, "attention_bias": True}),
    "qwen3.5-moe": ("Qwen3_5Moe", {**DELTA, **DELTA_EXPERTS}),
    "olmo-hybrid": ("OlmoHybrid", {"layer_types": DELTA["layer_types"], "pad_token_id": None}),
    "olmo-hybrid-no-positions": (
        "OlmoHybrid",
        {
            "layer_types": DELTA["layer_types"],
            "pad_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": None},
            "linear_allow_neg_eigval": False,
            "linear_key_head_dim": 20,
            "linear_value_head_dim": 20,
            "attention_bias": True,
        },
    ),
    "nemotron-h-experts": ("NemotronH", {**NEMOTRON_EXPERTS, "n_group": 3, "topk_group": 2}),
    "nemotron-h-latent-experts": (
        "NemotronH",
        {**NEMOTRON_EXPERTS, "moe_latent_size": 32, "mlp_bias": True, "norm_topk_prob": False, "use_conv_bias": False},
    ),
    "mamba": ("Mamba", MAMBA),
    "mamba-untied-biases": (
        "Mamba",
        {**MAMBA, "time_step_rank": "auto", "use_bias": True, "use_conv_bias": False, "tie_word_embeddings": False},
    ),
    "falcon-mamba": ("FalconMamba", {**MAMBA, "mixer_rms_eps": 1e-3, "layer_norm_epsilon": 1e-4}),
    "mamba2": ("Mamba2", MAMBA_2),
    "mamba2-tied-wide": (
        "Mamba2",
        {
            "expand": 3,
            "num_heads": 6,
            "head_dim": 32,
            "n_groups": 1,
            "state_size": 40,
            "use_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "falcon-h1": ("FalconH1", {**FALCON_H1, **FALCON_H1_FACTORS}),
    "falcon-h1-normed-biases": (
        "FalconH1",
        {
            **FALCON_H1,
            **FALCON_H1_FACTORS,
            "attention_in_multiplier": 1.0,
            "mamba_d_ssm": None,
            "mamba_rms_norm": True,
            "mamba_norm_before_gate": False,
            "projectors_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_conv_bias": False,
            "tie_word_embeddings": True,
        },
    ),
    "bamba": ("Bamba", BAMBA),
    "bamba-biases": ("Bamba", {**BAMBA, "attention_bias": True, "mlp_bias": True, "mamba_conv_bias": False}),
    "qwen3-heads-of-512": ("Qwen3", {"head_dim": 512, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "jamba": ("Jamba", {**JAMBA, "num_experts": 4, "num_experts_per_tok": 2}),
    "jamba-dense-biases": (
        "Jamba",
        {**JAMBA, "num_experts": 1, "num_experts_per_tok": 1, "mamba_proj_bias": True, "mamba_conv_bias": False},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-window-3-of-5": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 3, "sliding_window": 8}),
    **EXPERT_CASES,
}


def make_model(directory: Path, family: str, options: dict[str, Any], **saving: Any) -> Any:
    """A random model of transformers, saved to `directory`. Weights are large enough for differences to show."""
    seeing = ("Gemma3", "Gemma3n", "Gemma4", "Llama4", "Qwen3_5", "Qwen3_5Moe")
    config_name = f"{family}TextConfig" if family in seeing else f"{family}Config"
    sizes = {key: value for key, value in {**SIZES, **options}.items() if key not in FOREIGN.get(family, ())}
    config = getattr(transformers, config_name)(**sizes)
    # With "eager" Falcon adds ALiBi twice: in the mask, and to the scores.
    config._attn_implementation = "sdpa" if options.get("alibi") else "eager"
    model = getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name or "ln_" in name
            around_one = is_norm and (family not in OFFSET_NORMS or "linear_attn.norm" in name)
            parameter.copy_(0.15 * noise + 1.0 if around_one else 0.15 * noise)
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "expert_bias")):
                buffer.copy_(0.15 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("layer_scalar"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    if family == "OlmoHybrid" and config.linear_value_head_dim != config.linear_key_head_dim:
        saving["save_original_format"] = False  # which would cut the filters of q, k and v into equal parts
    model.save_pretrained(directory, **saving)
    return model


def transformers_logits(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor(prompts)).logits
    return logits
