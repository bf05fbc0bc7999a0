"""Tiny configurations of GLM-4V and MiniCPM-V: text parts, and of each case the family, the rest, and the settings of
its image processor."""

from __future__ import annotations

from typing import Any

GLM: dict[str, Any] = {
    "model_type": "glm4v_text",
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 1], "partial_rotary_factor": 0.5,
    },
}  # fmt: skip
GLM_TOWER: dict[str, Any] = {
    "depth": 2, "hidden_size": 48, "intermediate_size": 80, "num_heads": 3, "patch_size": 4, "out_hidden_size": 64,
    "image_size": 20,
}  # fmt: skip
GLM_SIZE = {"size": {"shortest_edge": 128, "longest_edge": 2048}}
MINICPM_TOWER: dict[str, Any] = {
    "model_type": "minicpmv4_6_vision", "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 4,
}  # fmt: skip
MINICPM_SIZE = {"scale_resolution": 24, "patch_size": 4}
TEXTS: dict[str, dict[str, Any]] = {
    "Glm4v": GLM,
    "Glm46V": GLM,
    "Glm4vMoe": {
        **GLM, "model_type": "glm4v_moe_text", "num_hidden_layers": 2, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_group": 1, "topk_group": 1, "head_dim": 16,
    },
    "MiniCPMV4_6": {
        "model_type": "qwen3_5_text", "head_dim": 16, "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0], "mrope_interleaved": True,
            "partial_rotary_factor": 0.25,
        },
    },
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "glm4v": ("Glm4v", {"vision_config": GLM_TOWER}, GLM_SIZE),
    "glm4v-biased": ("Glm4v", {"vision_config": {**GLM_TOWER, "attention_bias": True}}, GLM_SIZE),
    "glm4v-moe": ("Glm4vMoe", {"vision_config": {**GLM_TOWER, "model_type": "glm4v_moe_vision"}}, GLM_SIZE),
    "glm4.6v": ("Glm46V", {"vision_config": {**GLM_TOWER, "model_type": "glm4v_vision"}}, GLM_SIZE),
    "minicpm-v-4.6": ("MiniCPMV4_6", {"vision_config": MINICPM_TOWER, "insert_layer_id": 0}, MINICPM_SIZE),
    "minicpm-v-4.6-fine": (
        "MiniCPMV4_6",
        {"vision_config": MINICPM_TOWER, "insert_layer_id": 0, "downsample_mode": "4x"},
        {**MINICPM_SIZE, "downsample_mode": "4x"},
    ),
}
