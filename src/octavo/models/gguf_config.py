"""GGUF metadata -> the configuration that the same model has on the Hugging Face side.

So a family has one function, whatever the file format. What GGUF leaves unsaid (biases, tied embeddings, the
vocabulary's size) is read off the tensors that are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TensorInfo


@dataclass(frozen=True)
class _Arch:
    """An architecture of GGUF: the Hugging Face one it stands for, and what its files do not say."""

    architecture: str
    model_type: str
    activation: str = "silu"
    has_norms_of_one: bool = False  # norms that stand around zero on the other side have the 1 added
    has_gemma_keys: bool = False
    is_rotated_in_part: bool = False
    is_latent: bool = False  # heads of latent attention: their sizes stand under keys of their own


ARCHITECTURES: Final[dict[str, _Arch]] = {
    "llama": _Arch("LlamaForCausalLM", "llama"),
    "qwen2": _Arch("Qwen2ForCausalLM", "qwen2"),
    "qwen3": _Arch("Qwen3ForCausalLM", "qwen3"),
    "qwen3moe": _Arch("Qwen3MoeForCausalLM", "qwen3_moe"),
    "gemma": _Arch("GemmaForCausalLM", "gemma", has_norms_of_one=True),
    "gemma2": _Arch("Gemma2ForCausalLM", "gemma2", has_norms_of_one=True, has_gemma_keys=True),
    "gemma3": _Arch("Gemma3ForCausalLM", "gemma3_text", has_norms_of_one=True, has_gemma_keys=True),
    "phi3": _Arch("Phi3ForCausalLM", "phi3", is_rotated_in_part=True),
    "deepseek2": _Arch("DeepseekV2ForCausalLM", "deepseek_v2", is_latent=True),
    "lfm2": _Arch("Lfm2ForCausalLM", "lfm2"),
    "lfm2moe": _Arch("Lfm2MoeForCausalLM", "lfm2_moe"),
    "gpt2": _Arch("GPT2LMHeadModel", "gpt2", "gelu_new"),
    "gptneox": _Arch("GPTNeoXForCausalLM", "gpt_neox", "gelu", is_rotated_in_part=True),
    "bloom": _Arch("BloomForCausalLM", "bloom", "gelu_pytorch_tanh"),
}
_MIXTRAL: Final = _Arch("MixtralForCausalLM", "mixtral")
_DEEPSEEK_V3: Final = _Arch("DeepseekV3ForCausalLM", "deepseek_v3", is_latent=True)
#: What `expert_gating_func` says of scores.
_SIGMOID: Final = 2
#: Tensors that belong to the configuration, and the keys of the rope parameters under which they are there.
ROPE_TENSORS: Final = {
    "rope_freqs.weight": "factors", "rope_factors_short.weight": "short_factor",
    "rope_factors_long.weight": "long_factor",
}  # fmt: skip
#: The file does not say it: every sixth layer of Gemma 3 sees the whole context.
_GEMMA3_PATTERN: Final = 6
#: The 27B models, known by their number of layers, scale scores by hidden_size / num_heads instead of head_dim.
_GEMMA_27B_LAYERS: Final = {"gemma2": 46, "gemma3": 62}


def architecture(metadata: dict[str, Any]) -> _Arch:
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"the GGUF architecture {str(name)[:80]!r} is not supported; these are: {supported}")
    if name == "llama" and metadata.get("llama.expert_count"):
        return _MIXTRAL
    if name == "deepseek2" and metadata.get("deepseek2.expert_gating_func") == _SIGMOID:
        return _DEEPSEEK_V3
    return ARCHITECTURES[name]


def hf_config(
    metadata: dict[str, Any], tensors: dict[str, TensorInfo], rope_factors: dict[str, list[float]]
) -> dict[str, Any]:
    """The configuration. `rope_factors`: the content of the `ROPE_TENSORS` that are there, by their keys.

    Raises CheckpointError for an architecture that is not known or sizes that are missing.
    """
    arch = architecture(metadata)
    prefix = metadata["general.architecture"]

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"{prefix}.{key}", default)

    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise CheckpointError("the matrix 'token_embd.weight' is missing")
    head_dim = get("attention.key_length")
    if head_dim != get("attention.value_length", head_dim) and not arch.is_latent:
        raise CheckpointError("keys and values of different sizes are not supported")
    config: dict[str, Any] = {
        "architectures": [arch.architecture],
        "model_type": arch.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": _uniform(get("attention.head_count")),
        "num_key_value_heads": _uniform(_attentions(get("attention.head_count_kv"))),
        "head_dim": head_dim,
        "intermediate_size": _uniform(get("feed_forward_length")),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", get("attention.layer_norm_epsilon")),
        "max_position_embeddings": get("context_length"),
        "num_local_experts": get("expert_count"),
        "num_experts_per_tok": get("expert_used_count"),
        "moe_intermediate_size": get("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "use_parallel_residual": get("use_parallel_residual"),
        "hidden_act": arch.activation,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & tensors.keys()),
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    config["head_dim"] = head_dim if head_dim is not None else _default_head_dim(config)
    size, rotated = config["head_dim"], get("rope.dimension_count", config["head_dim"])
    if arch.is_latent:
        config |= _latent(prefix, get)
    elif rotated != size:
        if not arch.is_rotated_in_part or not isinstance(rotated, int) or not isinstance(size, int) or size < 1:
            raise CheckpointError(f"{prefix}.rope.dimension_count is not the size of a head: not supported")
        config["partial_rotary_factor"] = rotated / size
    rope = _rope(get, rope_factors)
    if arch.model_type in ("lfm2", "lfm2_moe"):
        config |= _lfm2(get, tensors)
    if arch.model_type == "phi3":
        config["sliding_window"] = get("attention.sliding_window") or None
    if arch.has_norms_of_one:
        config |= {"rms_norm_offset": 0, "hidden_activation": "gelu_pytorch_tanh"}
    if arch.has_gemma_keys:
        config |= _gemma(prefix, config, get, rope)
    else:
        config["rope_parameters"] = rope
    return {key: value for key, value in config.items() if value is not None}


def _latent(prefix: str, get: Any) -> dict[str, Any]:
    """Latent attention, and DeepSeek's experts. Newer files give the sizes of heads as they are cached, and those of
    queries and values beside them."""
    rotated = get("rope.dimension_count")
    key_length = get("attention.key_length_mla", get("attention.key_length"))
    if not isinstance(rotated, int) or not isinstance(key_length, int) or rotated >= key_length:
        raise CheckpointError(f"{prefix}.rope.dimension_count does not fit keys of {key_length}")
    num_groups = get("expert_group_count")
    grouped = {"n_group": num_groups, "topk_group": get("expert_group_used_count")} if num_groups else {}
    is_v3 = get("expert_gating_func") == _SIGMOID
    return {
        "head_dim": None,
        "num_key_value_heads": None,
        "num_local_experts": None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key_length - rotated,
        "v_head_dim": get("attention.value_length_mla", get("attention.value_length")),
        "kv_lora_rank": get("attention.kv_lora_rank"),
        "q_lora_rank": get("attention.q_lora_rank"),
        "attention_bias": False,
        "first_k_dense_replace": get("leading_dense_block_count", 0),
        "n_routed_experts": get("expert_count"),
        "n_shared_experts": get("expert_shared_count", 0),
        "routed_scaling_factor": get("expert_weights_scale", 1.0),
        "norm_topk_prob": get("expert_weights_norm", False),
        "topk_method": "noaux_tc" if is_v3 else "group_limited_greedy" if grouped else "greedy",
        **grouped,
    }


def _attentions(num_kv_heads: Any) -> Any:
    """Of the layers that have attention: those without have 0 heads."""
    return [count for count in num_kv_heads if count] if isinstance(num_kv_heads, list) else num_kv_heads


def _lfm2(get: Any, tensors: dict[str, TensorInfo]) -> dict[str, Any]:
    heads = get("attention.head_count_kv")
    if not isinstance(heads, list) or not any(heads):
        raise CheckpointError("lfm2.attention.head_count_kv does not say which layers have attention")
    return {
        "layer_types": ["full_attention" if count else "conv" for count in heads],
        "conv_L_cache": get("shortconv.l_cache"),
        "block_auto_adjust_ff_dim": False,
        "num_local_experts": None,
        "num_experts": get("expert_count"),
        "num_dense_layers": get("leading_dense_block_count"),
        "use_expert_bias": any(name.endswith(".exp_probs_b.bias") for name in tensors),
    }


def _uniform(value: Any) -> Any:
    """One number for all layers; a list of equal ones is the same."""
    if isinstance(value, list):
        if len(set(map(str, value))) != 1:
            raise CheckpointError("layers of different sizes are not supported")
        return value[0]
    return value


def _default_head_dim(config: dict[str, Any]) -> Any:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    return hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None


def _rope(get: Any, factors: dict[str, list[float]]) -> dict[str, Any]:
    rope: dict[str, Any] = {} if get("rope.freq_base") is None else {"rope_theta": get("rope.freq_base")}
    kind = get("rope.scaling.type", "none")
    if "long_factor" in factors:
        return rope | factors | {
            "rope_type": "longrope",
            "original_max_position_embeddings": get("rope.scaling.original_context_length"),
            "attention_factor": get("rope.scaling.attn_factor"),
        }  # fmt: skip
    if factors:
        if kind not in ("none", "linear"):
            raise CheckpointError(f"rope factors beside the rope scaling {str(kind)[:40]!r} are not supported")
        return rope | {"rope_type": "factors", **factors}
    if kind == "none":
        return rope
    rope |= {"rope_type": kind, "factor": get("rope.scaling.factor")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
        rope["beta_fast"] = get("rope.scaling.yarn_beta_fast")
        rope["beta_slow"] = get("rope.scaling.yarn_beta_slow")
        if (log_multiplier := get("rope.scaling.yarn_log_multiplier")) is not None:
            rope["mscale"] = rope["mscale_all_dim"] = 10 * log_multiplier
    return rope


def _gemma(name: str, config: dict[str, Any], get: Any, rope: dict[str, Any]) -> dict[str, Any]:
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == _GEMMA_27B_LAYERS[name]:
        scalar = _default_head_dim(config)
    own: dict[str, Any] = {
        "query_pre_attn_scalar": scalar,
        "sliding_window": get("attention.sliding_window"),
        "final_logit_softcapping": get("final_logit_softcapping"),
        "attn_logit_softcapping": get("attn_logit_softcapping"),
    }
    if name == "gemma2":
        return own | {"rope_parameters": rope}
    local = {"rope_theta": get("rope.freq_base_swa", 10_000.0)}
    return own | {
        "sliding_window_pattern": _GEMMA3_PATTERN,
        "rope_parameters": {"full_attention": {"rope_theta": 1_000_000.0, **rope}, "sliding_attention": local},
    }
