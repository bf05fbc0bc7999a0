"""GGUF metadata of models whose layers keep states -> keys of the Hugging Face configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TensorInfo
from octavo.models.config_reader import MAX_LAYERS

_Get = Callable[..., Any]
_Tensors = dict[str, TensorInfo]


def hf_config(model_type: str, config: dict[str, Any], get: _Get, tensors: _Tensors) -> dict[str, Any]:
    """What goes beyond `config`, or in its place; empty for other models. `get(key)` reads the metadata of the
    architecture."""
    match model_type:
        case "lfm2" | "lfm2_moe":
            own = _layers(config, "full_attention", "conv") | {
                "conv_L_cache": get("shortconv.l_cache"),
                "block_auto_adjust_ff_dim": False,
                "use_expert_bias": _has(tensors, ".exp_probs_b.bias"),
            }
        case "mamba" | "falcon_mamba":
            own = {"use_conv_bias": _has(tensors, ".ssm_conv1d.bias"), "use_bias": _has(tensors, ".ssm_in.bias")}
        case "mamba2":
            own = {"mamba_conv_bias": _has(tensors, ".ssm_conv1d.bias")}
        case "falcon_h1":
            own = {
                "mamba_conv_bias": _has(tensors, ".ssm_conv1d.bias"),
                "mamba_rms_norm": _has(tensors, ".ssm_norm.weight"),
                "projectors_bias": _has(tensors, ".ssm_out.bias"),
            }
        case "jamba":
            own = _hybrid(config, tensors) | {
                "mlp_layer_types": ["sparse" if routed else "dense" for routed in _routed(config, tensors)],
                "num_experts": get("expert_count", 1),
            }
        case "granitemoehybrid":
            shared = tensors.get("blk.0.ffn_up_shexp.weight") or tensors.get("blk.0.ffn_up.weight")
            own = _hybrid(config, tensors) | {
                "num_local_experts": 0,  # unless there are some
                "shared_intermediate_size": None if shared is None else shared.shape[0],
                "position_embedding_type": "rope" if get("rope.scaling.finetuned", True) else "nope",
            }
        case "nemotron_h":
            own = _nemotron_h(config, get, tensors)
        case "qwen3_next" | "qwen3_5_text" | "qwen3_5_moe_text":
            own = {"linear_value_head_dim": _head_size(get), "num_hidden_layers": own_layers(get)}
        case _:
            own = {}
    return own


def own_layers(get: _Get) -> Any:
    """How many layers there are but for those that guess further tokens, which stand behind the model's own."""
    layers, drafting = get("block_count"), get("nextn_predict_layers") or 0
    return layers - drafting if isinstance(layers, int) and isinstance(drafting, int) else layers


def _nemotron_h(config: dict[str, Any], get: _Get, tensors: _Tensors) -> dict[str, Any]:
    """A layer is one block."""
    num_layers, sizes = own_layers(get), config["intermediate_size"]
    if not isinstance(sizes, list):
        raise CheckpointError("feed_forward_length does not say which layers have an MLP")
    own = _hybrid(config, tensors)
    kinds = [
        ("moe" if routed else "mlp") if size else kind
        for size, routed, kind in zip(sizes, _routed(config, tensors), own["layer_types"], strict=False)
    ]
    return own | {
        "num_hidden_layers": num_layers,
        "layer_types": kinds[:num_layers],
        "intermediate_size": [size for size in sizes[:num_layers] if size] or None,
        "mamba_d_head": _head_size(get),
        "mlp_bias": _has(tensors, ".ffn_up.bias") or _has(tensors, ".ffn_up_shexp.bias"),
        "moe_latent_size": get("moe_latent_size"),
    }


def _head_size(get: _Get) -> int:
    inner, heads = get("ssm.inner_size"), get("ssm.time_step_rank")
    if not isinstance(inner, int) or not isinstance(heads, int) or heads < 1 or inner % heads:
        raise CheckpointError("ssm.inner_size does not fit the heads of ssm.time_step_rank")
    return inner // heads


def _hybrid(config: dict[str, Any], tensors: _Tensors) -> dict[str, Any]:
    return _layers(config, "attention", "mamba") | {
        "mamba_conv_bias": _has(tensors, ".ssm_conv1d.bias"),
        "attention_bias": _has(tensors, ".attn_q.bias"),
    }


def _layers(config: dict[str, Any], attention: str, other: str) -> dict[str, Any]:
    """The kinds of layers, of which those with attention have heads of keys."""
    heads = _listed(config)
    return {
        "num_key_value_heads": [count for count in heads if count] or None,
        "layer_types": [attention if count else other for count in heads],
    }


def _listed(config: dict[str, Any]) -> list[Any]:
    heads = config["num_key_value_heads"]
    if not isinstance(heads, list) or not heads or len(heads) != _num_layers(config):
        raise CheckpointError(f"attention.head_count_kv does not say which of {_num_layers(config)} layers have heads")
    return heads


def _routed(config: dict[str, Any], tensors: _Tensors) -> list[bool]:
    """Of each layer, whether it has a router."""
    return [f"blk.{layer}.ffn_gate_inp.weight" in tensors for layer in range(_num_layers(config))]


def _num_layers(config: dict[str, Any]) -> int:
    count = config["num_hidden_layers"]
    return min(count, MAX_LAYERS) if isinstance(count, int) else 0


def _has(tensors: _Tensors, end: str) -> bool:
    return any(name.endswith(end) for name in tensors)
