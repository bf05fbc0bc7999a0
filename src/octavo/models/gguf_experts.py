"""GGUF metadata of mixtures of experts -> keys of the Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from octavo.files.gguf import TensorInfo
from octavo.models.gguf_states import own_layers

#: Keys of all families, and where GGUF has them.
_KEYS: Final = {
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "shared_expert_intermediate_size": "expert_shared_feed_forward_length",
    "n_shared_experts": "expert_shared_count",
    "routed_scaling_factor": "expert_weights_scale",
    "first_k_dense_replace": "leading_dense_block_count",
    "n_group": "expert_group_count",
    "topk_group": "expert_group_used_count",
}
#: The larger Llama 4, known by them, has no norms of q and k.
_MAVERICK_EXPERTS: Final = 128
#: What a family calls them.
_OWN_NAMES: Final[dict[str, dict[str, str]]] = {
    "glm4_moe": {"num_local_experts": "n_routed_experts"},
    "deepseek": {"num_local_experts": "n_routed_experts"},
    "deepseek_v2": {"num_local_experts": "n_routed_experts"},
    "deepseek_v3": {"num_local_experts": "n_routed_experts"},
    "lfm2_moe": {"num_local_experts": "num_experts", "first_k_dense_replace": "num_dense_layers"},
    "qwen2_moe": {"num_local_experts": "num_experts"},
    "qwen3_next": {"num_local_experts": "num_experts"},
    "qwen3_5_moe_text": {"num_local_experts": "num_experts"},
    "jamba": {"num_local_experts": "num_experts"},
    "nemotron_h": {
        "num_local_experts": "n_routed_experts",
        "shared_expert_intermediate_size": "moe_shared_expert_intermediate_size",
    },
    "olmoe": {"num_local_experts": "num_experts"},
    "gemma4_text": {"num_local_experts": "num_experts", "num_experts_per_tok": "top_k_experts"},
    "hunyuan_v1_moe": {"num_local_experts": "num_experts", "n_shared_experts": "num_shared_expert"},
    "ernie4_5_moe": {
        "num_local_experts": "moe_num_experts", "num_experts_per_tok": "moe_k",
        "n_shared_experts": "moe_num_shared_experts", "first_k_dense_replace": "moe_layer_start_index",
    },
}  # fmt: skip


def hf_config(
    model_type: str, get: Callable[..., Any], tensors: dict[str, TensorInfo], norms_experts: bool
) -> dict[str, Any]:
    """`get(key)` reads the metadata of the architecture. Null where a file says nothing; empty without experts."""
    if not get("expert_count"):
        return {}
    names = _OWN_NAMES.get(model_type, {})
    config = {names.get(key, key): get(gguf) for key, gguf in _KEYS.items()}
    config["norm_topk_prob"] = get("expert_weights_norm", norms_experts)
    match model_type:
        case "qwen2_moe":
            config["qkv_bias"] = "blk.0.attn_q.bias" in tensors
        case "deepseek_v2":
            config["topk_method"] = "group_limited_greedy" if get("expert_group_count") else "greedy"
        case "dbrx":
            experts = {
                "ffn_hidden_size": get("feed_forward_length"),
                "moe_num_experts": get("expert_count"),
                "moe_top_k": get("expert_used_count"),
            }
            config = {"ffn_config": experts, "attn_config": {"clip_qkv": get("attention.clamp_kqv")}}
        case "minimax_m2":
            config["intermediate_size"] = get("expert_feed_forward_length") or get("feed_forward_length")
        case "phimoe":
            config["lm_head_bias"] = "output.bias" in tensors
        case "llama4_text":
            config |= {
                "intermediate_size": get("expert_feed_forward_length"),
                "intermediate_size_mlp": get("feed_forward_length"),
                "interleave_moe_layer_step": get("interleave_moe_layer_step"),
                "use_qk_norm": get("expert_count") != _MAVERICK_EXPERTS,
            }
        case "gpt_oss":
            config["intermediate_size"] = get("expert_feed_forward_length")
            config["sliding_window"] = get("attention.sliding_window")
        case "glm4_moe":
            config["use_qk_norm"] = "blk.0.attn_q_norm.weight" in tensors
            config["num_hidden_layers"] = own_layers(get)
        case "ernie4_5_moe":
            config["moe_layer_interval"] = get("interleave_moe_layer_step")
            config["moe_num_shared_experts"] = _num_shared(get)
        case "arctic":
            config |= {"use_residual": True, "parallel_attn_mlp_res": True}
    return config


def _num_shared(get: Callable[..., Any]) -> Any:
    """Files may tell only how wide they are together."""
    count, width, size = (
        get(f"expert_{key}") for key in ("shared_count", "shared_feed_forward_length", "feed_forward_length")
    )
    return width // size if not count and width and size else count or 0
