"""GGUF metadata -> the configuration that the same model has on the Hugging Face side.

So a family has one function, whatever the file format. What GGUF leaves unsaid (biases, tied embeddings, the
vocabulary's size) is read off the tensors that are there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from octavo.errors import CheckpointError
from octavo.gguf import TensorInfo


@dataclass(frozen=True)
class _Arch:
    """An architecture of GGUF: the Hugging Face one it stands for, and how its tensors are stored."""

    architecture: str
    model_type: str
    interleaved: bool = False  # rows of q and k are in the order of pairs side by side, not of halves
    has_gemma_keys: bool = False


ARCHITECTURES: Final[dict[str, _Arch]] = {
    "llama": _Arch("LlamaForCausalLM", "llama", interleaved=True),
    "qwen2": _Arch("Qwen2ForCausalLM", "qwen2"),
    "qwen3": _Arch("Qwen3ForCausalLM", "qwen3"),
    "gemma2": _Arch("Gemma2ForCausalLM", "gemma2", has_gemma_keys=True),
    "gemma3": _Arch("Gemma3ForCausalLM", "gemma3_text", has_gemma_keys=True),
}
#: The file does not say it: every sixth layer of Gemma 3 sees the whole context.
_GEMMA3_PATTERN: Final = 6
#: The 27B models, known by their number of layers, scale scores by hidden_size / num_heads instead of head_dim.
_GEMMA_27B_LAYERS: Final = {"gemma2": 46, "gemma3": 62}


def architecture(metadata: dict[str, Any]) -> _Arch:
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        supported = ", ".join(ARCHITECTURES)
        raise CheckpointError(f"the GGUF architecture {str(name)[:80]!r} is not supported; these are: {supported}")
    return ARCHITECTURES[name]


def hf_config(
    metadata: dict[str, Any], tensors: dict[str, TensorInfo], rope_factors: list[float] | None
) -> dict[str, Any]:
    """The configuration. `rope_factors`: the content of the tensor rope_freqs.weight, if there is one.

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
    if head_dim != get("attention.value_length", head_dim):
        raise CheckpointError("keys and values of different sizes are not supported")
    config: dict[str, Any] = {
        "architectures": [arch.architecture],
        "model_type": arch.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": get("embedding_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": _uniform(get("attention.head_count")),
        "num_key_value_heads": _uniform(get("attention.head_count_kv")),
        "head_dim": head_dim,
        "intermediate_size": _uniform(get("feed_forward_length")),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": get("context_length"),
        "num_experts": get("expert_count"),
        "hidden_act": "silu",
        "rope_interleaved": arch.interleaved,
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }
    config["head_dim"] = head_dim if head_dim is not None else _default_head_dim(config)
    if get("rope.dimension_count", config["head_dim"]) != config["head_dim"]:
        raise CheckpointError(f"{prefix}.rope.dimension_count is not the size of a head: not supported")
    rope = _rope(get, rope_factors)
    if arch.has_gemma_keys:
        config |= _gemma(prefix, config, get, rope)
    else:
        config["rope_parameters"] = rope
    return {key: value for key, value in config.items() if value is not None}


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


def _rope(get: Any, factors: list[float] | None) -> dict[str, Any]:
    rope: dict[str, Any] = {} if get("rope.freq_base") is None else {"rope_theta": get("rope.freq_base")}
    kind = get("rope.scaling.type", "none")
    if factors is not None:
        if kind not in ("none", "linear"):
            raise CheckpointError(f"rope factors beside the rope scaling {str(kind)[:40]!r} are not supported")
        return rope | {"rope_type": "factors", "factors": factors}
    if kind == "none":
        return rope
    rope |= {"rope_type": kind, "factor": get("rope.scaling.factor")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
        rope["beta_fast"] = get("rope.scaling.yarn_beta_fast")
        rope["beta_slow"] = get("rope.scaling.yarn_beta_slow")
    return rope


def _gemma(name: str, config: dict[str, Any], get: Any, rope: dict[str, Any]) -> dict[str, Any]:
    scalar = config["head_dim"]
    if config["num_hidden_layers"] == _GEMMA_27B_LAYERS[name]:
        scalar = _default_head_dim(config)
    own: dict[str, Any] = {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": get("attention.sliding_window"),
        "final_logit_softcapping": get("final_logit_softcapping"),
        "attn_logit_softcapping": get("attn_logit_softcapping"),
        "rms_norm_offset": 0,
    }
    if name == "gemma2":
        return own | {"rope_parameters": rope}
    local = {"rope_theta": get("rope.freq_base_swa", 10_000.0)}
    return own | {
        "sliding_window_pattern": _GEMMA3_PATTERN,
        "rope_parameters": {"full_attention": {"rope_theta": 1_000_000.0, **rope}, "sliding_attention": local},
    }
