"""Tiny configurations of models that also see: text parts, and of each case the family, the rest, and the settings of
its image processor."""

from __future__ import annotations

from typing import Any

IMAGE = 90
TEXT: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "model_type": "qwen2_vl_text",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
}
GEMMA: dict[str, Any] = {
    "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 6, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 2, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2, "patch_size": 4, "hidden_size": 64,
}  # fmt: skip
QWEN_ANY: dict[str, Any] = {
    "depth": 4, "hidden_size": 48, "intermediate_size": 80, "num_heads": 3, "patch_size": 4, "out_hidden_size": 64,
}  # fmt: skip
TURNS: dict[str, Any] = {
    "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2], "mrope_interleaved": True,
}  # fmt: skip
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
#: Of a family's text part, beside or in the place of `TEXT`.
TEXTS: dict[str, dict[str, Any]] = {
    "Qwen2VL": QWEN,
    "Qwen2_5_VL": {**QWEN, "model_type": "qwen2_5_vl_text"},
    "Qwen3VL": {
        "model_type": "qwen3_vl_text", "head_dim": 16, "num_hidden_layers": 3,
        "rope_parameters": TURNS,
    },
    "Qwen3VLMoe": {
        "model_type": "qwen3_vl_moe_text", "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 24, "rope_parameters": TURNS,
    },
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
    "Gemma3": GEMMA,
    "PaliGemma": {"model_type": "gemma", "head_dim": 16},
    "Llama4": {
        "model_type": "llama4_text", "head_dim": 16, "intermediate_size_mlp": 96, "num_local_experts": 4,
        "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0], "attention_chunk_size": 64, "bos_token_id": 1,
        "pad_token_id": 2,
    },
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip
LLAVA = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
IDEFICS = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llava": ("Llava", {"vision_config": {"model_type": "clip_vision_model", **VISION}}, LLAVA),
    "llava-full-first-layers-no-bias": (
        "Llava",
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION, "hidden_act": "gelu"},
            "vision_feature_select_strategy": "full", "vision_feature_layer": 1, "multimodal_projector_bias": False,
        },
        LLAVA,
    ),
    "llava-siglip": (
        "Llava",
        {
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "vision_feature_select_strategy": "full", "vision_feature_layer": -1,
        },
        LLAVA,
    ),
    "llava-siglip-inner": (
        "Llava",
        {
            "vision_config": {"model_type": "siglip_vision_model", **VISION},
            "vision_feature_select_strategy": "full", "vision_feature_layer": -2,
        },
        LLAVA,
    ),
    "idefics3": ("Idefics3", {"vision_config": VISION, "scale_factor": 2}, IDEFICS),
    "qwen2-vl": (
        "Qwen2VL",
        {
            "vision_config": QWEN_TOWER,
        },
        {"min_pixels": 64, "max_pixels": 1024},
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VL",
        {"vision_config": {**QWEN_ANY, "window_size": 16, "fullatt_block_indexes": [1, 3]}},
        {"min_pixels": 64, "max_pixels": 2048},
    ),
    "qwen2.5-vl-windows-last": (
        "Qwen2_5_VL",
        {"vision_config": {**QWEN_ANY, "window_size": 16, "fullatt_block_indexes": [0]}},
        {"min_pixels": 64, "max_pixels": 2048},
    ),
    "qwen3-vl": (
        "Qwen3VL",
        {"vision_config": {**QWEN_ANY, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}},
        {"min_pixels": 64, "max_pixels": 2048, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoe",
        {"vision_config": {**QWEN_ANY, "num_position_embeddings": 25, "deepstack_visual_indexes": [0, 2]}},
        {"min_pixels": 64, "max_pixels": 2048, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    ),
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
    "gemma3": (
        "Gemma3",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
        {"size": {"height": 16, "width": 16}},
    ),
    "gemma3-pan-and-scan": (
        "Gemma3",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
        {
            "size": {"height": 16, "width": 16}, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8,
            "pan_and_scan_max_num_crops": 4, "pan_and_scan_min_ratio_to_activate": 1.2,
        },
    ),
    "pixtral": (
        "Llava",
        {
            "vision_config": {"model_type": "pixtral", **VISION, "image_size": 64}, "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        },
        {"size": {"longest_edge": 24}},
    ),
    "mistral3": (
        "Mistral3",
        {"vision_config": {"model_type": "pixtral", **VISION, "image_size": 64}, "spatial_merge_size": 2},
        {"size": {"longest_edge": 24}},
    ),
    "internvl": (
        "InternVL",
        {"vision_config": {**VISION, "attention_bias": True, "image_size": [16, 16], "patch_size": [4, 4]}},
        {"size": {"height": 16, "width": 16}},
    ),
    "internvl-normed": (
        "InternVL",
        {
            "vision_config": {
                **VISION, "use_qk_norm": True, "norm_type": "rms_norm", "use_mean_pooling": False,
                "image_size": [16, 16], "patch_size": [4, 4],
            },
        },
        {"size": {"height": 16, "width": 16}},
    ),
    "paligemma": (
        "PaliGemma",
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "projection_dim": 64},
        {"size": {"height": 16, "width": 16}},
    ),
    "granite-vision": (
        "LlavaNext",
        {
            "vision_config": {"model_type": "siglip_vision_model", **VISION}, "vision_feature_layer": [-3, -1],
            "vision_feature_select_strategy": "full", "image_grid_pinpoints": [[16, 32], [32, 16]],
            # Without `logits_scaling`, which transformers leaves out of a Granite that sees.
            "text": {
                "model_type": "granite", "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                "attention_multiplier": 0.2,
            },
        },
        {
            "size": {"height": 16, "width": 16}, "crop_size": {"height": 16, "width": 16},
            "image_grid_pinpoints": [[16, 32], [32, 16]],
        },
    ),
    "llava-class-of-two-layers": (
        "Llava",
        {"vision_config": {"model_type": "clip_vision_model", **VISION}, "vision_feature_layer": [1, -2]},
        LLAVA,
    ),
    "llava-next": (
        "LlavaNext",
        {
            "vision_config": {"model_type": "clip_vision_model", **VISION},
            "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16]],
        },
        {**LLAVA, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32], [48, 16]]},
    ),
    "llama4": (
        "Llama4",
        {
            "vision_config": {
                **VISION, "intermediate_size": 192, "projector_input_dim": 40, "projector_output_dim": 40,
                "vision_output_dim": 40,
            },
        },
        {"size": {"height": 16, "width": 16}},
    ),
    "smolvlm": ("SmolVLM", {"vision_config": VISION, "scale_factor": 4}, IDEFICS),
}  # fmt: skip
