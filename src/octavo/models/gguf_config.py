"""GGUF metadata -> the configuration that the same model has on the Hugging Face side.

So a family has one function, whatever the file format. What GGUF leaves unsaid (biases, tied embeddings, the
vocabulary's size) is read off the tensors that are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TensorInfo
from octavo.files.projector import ARCHITECTURE as PROJECTOR
from octavo.models import gguf_encoders, gguf_experts, gguf_gemma, gguf_states


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
    norms_experts: bool = True  # the weights of a token's experts add up to 1
    listed: tuple[str, ...] = ()  # sizes that may differ from layer to layer
    keys: Mapping[str, str] = field(default_factory=dict)  # of the configuration: those of the metadata
    values: Mapping[str, Any] = field(default_factory=dict)  # of the configuration: what all files mean
    tensors: Mapping[str, str] = field(default_factory=dict)  # flags of the configuration: set where the tensor is


_FACTOR_KEYS: Final = {
    "embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale",
}  # fmt: skip
_GRANITE_KEYS: Final = {**_FACTOR_KEYS, "attention_multiplier": "attention.scale"}
_WINDOW_KEYS: Final = {
    "sliding_window": "attention.sliding_window", "layer_types": "attention.sliding_window_pattern",
}  # fmt: skip
_GEMMA_LAYER_KEYS: Final = {
    **_WINDOW_KEYS, "num_kv_shared_layers": "attention.shared_kv_layers",
    "hidden_size_per_layer_input": "embedding_length_per_layer_input",
    "final_logit_softcapping": "final_logit_softcapping",
}  # fmt: skip
_GEMMA3N_KEYS: Final = {
    **_GEMMA_LAYER_KEYS, "altup_active_idx": "altup.active_idx", "altup_num_inputs": "altup.num_inputs",
}  # fmt: skip
#: What llama.cpp takes where a file of MiniCPM says nothing.
_MINICPM_VALUES: Final = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256}

_DELTA_KEYS: Final = {
    "linear_conv_kernel_dim": "ssm.conv_kernel", "linear_key_head_dim": "ssm.state_size",
    "linear_num_key_heads": "ssm.group_count", "linear_num_value_heads": "ssm.time_step_rank",
    "full_attention_interval": "full_attention_interval",
}  # fmt: skip
#: Heads of the gated delta net that read the same key head do not stand side by side in files of Qwen3.5.
_TILED: Final = {"linear_heads_tiled": True}
_MAMBA_KEYS: Final = {
    "intermediate_size": "ssm.inner_size", "state_size": "ssm.state_size", "conv_kernel": "ssm.conv_kernel",
    "time_step_rank": "ssm.time_step_rank", "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
}  # fmt: skip
_JAMBA_KEYS: Final = {
    "mamba_d_ssm": "ssm.inner_size", "mamba_d_state": "ssm.state_size", "mamba_d_conv": "ssm.conv_kernel",
    "mamba_dt_rank": "ssm.time_step_rank",
}  # fmt: skip
_MAMBA2_KEYS: Final = {
    "mamba_d_ssm": "ssm.inner_size", "mamba_d_state": "ssm.state_size", "mamba_d_conv": "ssm.conv_kernel",
    "mamba_n_heads": "ssm.time_step_rank", "mamba_n_groups": "ssm.group_count",
}  # fmt: skip

# fmt: off
ARCHITECTURES: Final[dict[str, _Arch]] = {
    "llama": _Arch("LlamaForCausalLM", "llama"),
    "qwen2": _Arch("Qwen2ForCausalLM", "qwen2"),
    "qwen3": _Arch("Qwen3ForCausalLM", "qwen3"),
    "qwen2vl": _Arch("Qwen2ForCausalLM", "qwen2"),
    "qwen3vl": _Arch("Qwen3ForCausalLM", "qwen3"),
    "qwen3vlmoe": _Arch("Qwen3MoeForCausalLM", "qwen3_moe"),
    "qwen2moe": _Arch("Qwen2MoeForCausalLM", "qwen2_moe", norms_experts=False),
    "qwen3moe": _Arch("Qwen3MoeForCausalLM", "qwen3_moe"),
    "qwen3next": _Arch("Qwen3NextForCausalLM", "qwen3_next", has_norms_of_one=True, is_rotated_in_part=True,
                       keys=_DELTA_KEYS),
    "qwen35": _Arch("Qwen3_5ForCausalLM", "qwen3_5_text", has_norms_of_one=True, is_rotated_in_part=True,
                    keys=_DELTA_KEYS, values=_TILED),
    "qwen35moe": _Arch("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", has_norms_of_one=True, is_rotated_in_part=True,
                       keys=_DELTA_KEYS, values=_TILED),
    "gpt-oss": _Arch("GptOssForCausalLM", "gpt_oss"),
    "glm4moe": _Arch("Glm4MoeForCausalLM", "glm4_moe", is_rotated_in_part=True),
    "ernie4_5-moe": _Arch("Ernie4_5_MoeForCausalLM", "ernie4_5_moe"),
    "deepseek": _Arch("DeepseekForCausalLM", "deepseek", norms_experts=False),
    "olmoe": _Arch("OlmoeForCausalLM", "olmoe", norms_experts=False),
    "minimax-m2": _Arch("MiniMaxM2ForCausalLM", "minimax_m2", is_rotated_in_part=True),
    "phimoe": _Arch("PhimoeForCausalLM", "phimoe"),
    "llama4": _Arch("Llama4ForCausalLM", "llama4_text"),
    "hunyuan-moe": _Arch("HunYuanMoEV1ForCausalLM", "hunyuan_v1_moe"),
    "granitemoe": _Arch("GraniteMoeSharedForCausalLM", "granitemoeshared",
                        keys={**_GRANITE_KEYS, "shared_intermediate_size": "expert_shared_feed_forward_length"}),
    "dbrx": _Arch("DbrxForCausalLM", "dbrx"),
    "arctic": _Arch("ArcticForCausalLM", "arctic"),
    "gemma": _Arch("GemmaForCausalLM", "gemma", has_norms_of_one=True),
    "gemma2": _Arch("Gemma2ForCausalLM", "gemma2", has_norms_of_one=True, has_gemma_keys=True),
    "gemma3": _Arch("Gemma3ForCausalLM", "gemma3_text", has_norms_of_one=True, has_gemma_keys=True),
    "gemma3n": _Arch("Gemma3nForCausalLM", "gemma3n_text", "gelu_pytorch_tanh", listed=("intermediate_size",),
                     keys=_GEMMA3N_KEYS),
    "gemma4": _Arch("Gemma4ForCausalLM", "gemma4_text", "gelu_pytorch_tanh", keys=_GEMMA_LAYER_KEYS),
    "phi3": _Arch("Phi3ForCausalLM", "phi3", is_rotated_in_part=True),
    "deepseek2": _Arch("DeepseekV2ForCausalLM", "deepseek_v2", is_latent=True, norms_experts=False),
    "lfm2": _Arch("Lfm2ForCausalLM", "lfm2"),
    "lfm2moe": _Arch("Lfm2MoeForCausalLM", "lfm2_moe"),
    "gpt2": _Arch("GPT2LMHeadModel", "gpt2", "gelu_new"),
    "gptneox": _Arch("GPTNeoXForCausalLM", "gpt_neox", "gelu", is_rotated_in_part=True),
    "bloom": _Arch("BloomForCausalLM", "bloom", "gelu_pytorch_tanh"),
    "command-r": _Arch("CohereForCausalLM", "cohere", keys={"logit_scale": "logit_scale"},
                       tensors={"use_qk_norm": "attn_q_norm.weight"}),
    "cohere2": _Arch("Cohere2ForCausalLM", "cohere2",
                     keys={"logit_scale": "logit_scale", "sliding_window": "attention.sliding_window"}),
    "granite": _Arch("GraniteForCausalLM", "granite", keys=_GRANITE_KEYS),
    "chatglm": _Arch("GlmForCausalLM", "glm", is_rotated_in_part=True),
    "glm4": _Arch("Glm4ForCausalLM", "glm4", is_rotated_in_part=True),
    "falcon": _Arch("FalconForCausalLM", "falcon", "gelu", tensors={"new_decoder_architecture": "attn_norm_2.weight"}),
    "exaone": _Arch("ExaoneForCausalLM", "exaone"),
    "exaone4": _Arch("Exaone4ForCausalLM", "exaone4", keys=_WINDOW_KEYS),
    "internlm2": _Arch("InternLM2ForCausalLM", "internlm2"),
    # Whether rows of the output matrix have been brought to length 1 the files do not say; llama.cpp does not do it.
    "baichuan": _Arch("BaichuanForCausalLM", "baichuan", values={"unit_lm_head": False}),
    "starcoder": _Arch("GPTBigCodeForCausalLM", "gpt_bigcode", "gelu_pytorch_tanh"),
    "qwen": _Arch("QWenLMHeadModel", "qwen"),
    "deci": _Arch("DeciLMForCausalLM", "deci"),
    "xverse": _Arch("XverseForCausalLM", "xverse"),
    "seed_oss": _Arch("SeedOssForCausalLM", "seed_oss", tensors={"attention_out_bias": "attn_output.bias"}),
    "smollm3": _Arch("SmolLM3ForCausalLM", "smollm3"),
    "ernie4_5": _Arch("Ernie4_5ForCausalLM", "ernie4_5"),
    "phi2": _Arch("PhiForCausalLM", "phi", "gelu_new", is_rotated_in_part=True),
    "olmo": _Arch("OlmoForCausalLM", "olmo", keys={"clip_qkv": "attention.clamp_kqv"}),
    "olmo2": _Arch("Olmo2ForCausalLM", "olmo2"),
    "stablelm": _Arch("StableLmForCausalLM", "stablelm", is_rotated_in_part=True,
                      tensors={"use_qkv_bias": "attn_q.bias", "qk_layernorm": "attn_q_norm.weight"}),
    "starcoder2": _Arch("Starcoder2ForCausalLM", "starcoder2", "gelu_pytorch_tanh",
                        tensors={"use_bias": "attn_q.bias"}),
    "nemotron": _Arch("NemotronForCausalLM", "nemotron", "relu2", has_norms_of_one=True, is_rotated_in_part=True),
    "mpt": _Arch("MptForCausalLM", "mpt", "gelu",
                 keys={"alibi_bias_max": "attention.max_alibi_bias", "clip_qkv": "attention.clamp_kqv"}),
    "jais": _Arch("JAISLMHeadModel", "jais", "swiglu", keys={"alibi_bias_max": "attention.max_alibi_bias"},
                  values={"mup_scale_qk_dot_by_d": True}),
    "minicpm": _Arch("MiniCPMForCausalLM", "minicpm", keys=_FACTOR_KEYS, values=_MINICPM_VALUES),
    "minicpm3": _Arch("MiniCPM3ForCausalLM", "minicpm3", is_latent=True, values=_MINICPM_VALUES),
    "orion": _Arch("OrionForCausalLM", "orion"),
    "apertus": _Arch("ApertusForCausalLM", "apertus", "xielu"),
    "arcee": _Arch("ArceeForCausalLM", "arcee", "relu2"),
    "mistral3": _Arch("Ministral3ForCausalLM", "ministral3"),
    "mamba": _Arch("MambaForCausalLM", "mamba", keys=_MAMBA_KEYS),
    "mamba2": _Arch("Mamba2ForCausalLM", "mamba2",
                    keys={**_MAMBA2_KEYS, "layer_norm_epsilon": "attention.layer_norm_rms_epsilon"}),
    "jamba": _Arch("JambaForCausalLM", "jamba", keys=_JAMBA_KEYS, norms_experts=False),
    # What multiplies Falcon-H1's weights is in them.
    "falcon-h1": _Arch("FalconH1ForCausalLM", "falcon_h1", keys=_MAMBA2_KEYS,
                       values={"mamba_norm_before_gate": False}),
    "granitehybrid": _Arch("GraniteMoeHybridForCausalLM", "granitemoehybrid", keys={**_MAMBA2_KEYS, **_GRANITE_KEYS}),
    "nemotron_h": _Arch("NemotronHForCausalLM", "nemotron_h", keys=_MAMBA2_KEYS),
    "nemotron_h_moe": _Arch("NemotronHForCausalLM", "nemotron_h", keys=_MAMBA2_KEYS),
    "gemma-embedding": _Arch("Gemma3TextModel", "gemma3_text", has_norms_of_one=True, has_gemma_keys=True,
                             keys={"layer_types": "attention.sliding_window_pattern"},
                             values={"use_bidirectional_attention": True}),
    "bert": _Arch("BertModel", "bert", "gelu"),
    "nomic-bert": _Arch("NomicBertModel", "nomic_bert", "swiglu", keys={"causal": "attention.causal"}),
    "nomic-bert-moe": _Arch("NomicBertModel", "nomic_bert", "gelu",
                            keys={"causal": "attention.causal", "moe_every_n_layers": "moe_every_n_layers",
                                  "num_experts": "expert_count"}),
    "modern-bert": _Arch("ModernBertModel", "modernbert", "gelu",
                         keys={"local_attention": "attention.sliding_window",
                               "global_attn_every_n_layers": "attention.sliding_window_pattern"}),
    "jina-bert-v2": _Arch("JinaBertForMaskedLM", "jina_bert", "gelu"),
    "jina-bert-v3": _Arch("JinaEmbeddingsV3Model", "jina_embeddings_v3", "gelu"),
    "hunyuan-dense": _Arch("HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense"),
}
# fmt: on
_SIZES: Final = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
#: The file does not say that positions are told by ALiBi: the model with so many layers has no other.
_BAICHUAN_13B_LAYERS: Final = 40
_MIXTRAL: Final = _Arch("MixtralForCausalLM", "mixtral")
_DEEPSEEK_V3: Final = _Arch("DeepseekV3ForCausalLM", "deepseek_v3", is_latent=True, norms_experts=False)
#: What `expert_gating_func` says of scores.
_SIGMOID: Final = 2
_FALCON_MAMBA: Final = _Arch("FalconMambaForCausalLM", "falcon_mamba", keys=_MAMBA_KEYS)
_OLMO3: Final = _Arch("Olmo3ForCausalLM", "olmo3", keys=_WINDOW_KEYS)
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
    if name == PROJECTOR:
        raise CheckpointError("this is a projector's file: name the language model's, and this one with --mmproj")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"the GGUF architecture {str(name)[:80]!r} is not supported; these are: {supported}")
    if name == "llama" and metadata.get("llama.expert_count"):
        return _MIXTRAL
    if name == "deepseek2" and metadata.get("deepseek2.expert_gating_func") == _SIGMOID:
        return _DEEPSEEK_V3
    if name == "olmo2" and metadata.get("olmo2.attention.sliding_window"):
        return _OLMO3
    if name == "mamba" and metadata.get("mamba.ssm.dt_b_c_rms"):
        return _FALCON_MAMBA
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
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
        "head_dim": head_dim,
        "intermediate_size": get("feed_forward_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", get("attention.layer_norm_epsilon")),
        "max_position_embeddings": get("context_length"),
        "use_parallel_residual": get("use_parallel_residual"),
        "hidden_act": arch.activation,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & tensors.keys()),
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "pooling_type": get("pooling_type"),
    }
    config |= {**arch.values, **{key: get(name) for key, name in arch.keys.items()}}
    if isinstance(types := config.get("layer_types"), list):  # whether a layer has the window
        config["layer_types"] = ["sliding_attention" if windowed else "full_attention" for windowed in types]
    elif types is not None:  # every so many layers one has none
        config["sliding_window_pattern"] = config.pop("layer_types")
    config |= {key: f"blk.0.{name}" in tensors for key, name in arch.tensors.items()}
    config |= {key: value for key, value in metadata.items() if key.startswith("xielu.")}
    _own(arch, prefix, config, get, tensors)
    config |= gguf_encoders.hf_config(arch.model_type, config, get, tensors, metadata)
    config |= gguf_states.hf_config(arch.model_type, config, get, tensors)
    config |= {key: _uniform(config[key]) for key in _SIZES if key not in arch.listed}
    if config["head_dim"] is None:
        config["head_dim"] = _default_head_dim(config)
    if arch.model_type != "gemma4_text":  # whose full layers have larger heads
        config |= _latent(prefix, get) if arch.is_latent else _rotated_part(prefix, arch, get, config["head_dim"])
    config |= gguf_experts.hf_config(arch.model_type, get, tensors, arch.norms_experts)
    rope = _rope(get, rope_factors)
    if arch.model_type == "gpt_oss" and rope.get("rope_type") == "yarn":
        rope["truncate"] = False  # which files do not say
    if arch.model_type == "ministral3":
        rope |= _ministral3_rope(get)
    if (sections := get("rope.dimension_sections")) is not None and prefix in ("qwen2vl", "qwen3vl", "qwen3vlmoe"):
        rope["mrope_section"] = sections[:3]  # behind them one for another kind of model
    if arch.model_type == "phi3":
        config["sliding_window"] = get("attention.sliding_window") or None
    if arch.has_norms_of_one:
        config |= {"rms_norm_offset": 0, "hidden_activation": "gelu_pytorch_tanh"}
    if arch.model_type in ("gemma3n_text", "gemma4_text"):
        config["rope_parameters"] = gguf_gemma.ropes(arch.model_type, get, rope)
    elif arch.has_gemma_keys:
        config |= _gemma(prefix, config, get, rope)
    else:
        config.setdefault("rope_parameters", rope)
    return {key: value for key, value in config.items() if value is not None}


def _own(arch: _Arch, prefix: str, config: dict[str, Any], get: Any, tensors: dict[str, TensorInfo]) -> None:
    """What an architecture has under keys or in forms of its own, entered into the configuration."""
    if arch.model_type == "baichuan" and config["num_hidden_layers"] == _BAICHUAN_13B_LAYERS:
        config["model_max_length"] = config.pop("max_position_embeddings")
    if arch.model_type == "deci":
        _list_layers(config)
    if arch.model_type in ("gemma3n_text", "gemma4_text"):
        config["hidden_activation"] = config["hidden_act"]
        config |= gguf_gemma.hf_config(arch.model_type, config, get, tensors)


def _rotated_part(prefix: str, arch: _Arch, get: Any, size: Any) -> dict[str, Any]:
    rotated = get("rope.dimension_count", size)
    if rotated == size:
        return {}
    if not arch.is_rotated_in_part or not isinstance(rotated, int) or not isinstance(size, int) or size < 1:
        raise CheckpointError(f"{prefix}.rope.dimension_count is not the size of a head: not supported")
    return {"partial_rotary_factor": rotated / size}


def _latent(prefix: str, get: Any) -> dict[str, Any]:
    """Newer files give the sizes of heads as they are cached, and those of queries and values beside them."""
    rotated = get("rope.dimension_count")
    key_length = get("attention.key_length_mla", get("attention.key_length"))
    if not isinstance(rotated, int) or not isinstance(key_length, int) or rotated >= key_length:
        raise CheckpointError(f"{prefix}.rope.dimension_count does not fit keys of {key_length}")
    return {
        "head_dim": None,
        "num_key_value_heads": None,
        "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": key_length - rotated,
        "v_head_dim": get("attention.value_length_mla", get("attention.value_length")),
        "kv_lora_rank": get("attention.kv_lora_rank"),
        "q_lora_rank": get("attention.q_lora_rank"),
        "attention_bias": False,
    }


def _list_layers(config: dict[str, Any]) -> None:
    """The sizes of layers that differ, where a model may have such. A layer without heads has no attention."""
    heads, kv_heads, sizes = (config[key] for key in _SIZES)
    for key, values in zip(_SIZES, (heads, kv_heads, sizes), strict=True):
        if isinstance(values, list) and any(type(value) is not int for value in values):
            raise CheckpointError(f"{key} of the layers are not all whole numbers")
    if isinstance(heads, list):
        most = max(heads, default=0)
        if set(heads) - {0, most}:
            raise CheckpointError("layers of different heads of queries are not supported")
        config["num_attention_heads"] = most
    if isinstance(kv_heads, list):
        if isinstance(heads, list) and any(count and not kv for count, kv in zip(heads, kv_heads, strict=False)):
            raise CheckpointError("layers with a matrix in place of attention are not supported")
        config["num_key_value_heads_per_layer"] = kv_heads
        config["num_key_value_heads"] = max(kv_heads, default=0)
    if isinstance(sizes, list):
        config["intermediate_size_per_layer"] = sizes
        config["intermediate_size"] = max(sizes, default=0)


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


def _ministral3_rope(get: Any) -> dict[str, Any]:
    rope = {} if get("attention.temperature_scale") is None else {
        "llama_4_scaling_beta": get("attention.temperature_scale"),
    }  # fmt: skip
    if get("rope.scaling.yarn_log_multiplier"):  # the two factors of yarn's are equal, and cancel each other
        rope["attention_factor"] = 1.0
    return rope


def _gemma(name: str, config: dict[str, Any], get: Any, rope: dict[str, Any]) -> dict[str, Any]:
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == _GEMMA_27B_LAYERS.get(name):
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
        "sliding_window_pattern": config.get("sliding_window_pattern", _GEMMA3_PATTERN),
        "rope_parameters": {"full_attention": {"rope_theta": 1_000_000.0, **rope}, "sliding_attention": local},
    }
