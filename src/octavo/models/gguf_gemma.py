"""GGUF metadata of Gemma 3n and 4 -> keys of the Hugging Face configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TensorInfo

_GLOBAL_THETA: Final = 1_000_000.0
_LOCAL_THETA: Final = 10_000.0
#: Frequencies that are divided by as much or more do not turn.
_STILL: Final = 1e20


def hf_config(
    model_type: str, config: dict[str, Any], get: Callable[..., Any], tensors: dict[str, TensorInfo]
) -> dict[str, Any]:
    """`config`: what was read the same way for all architectures."""
    own: dict[str, Any] = {}
    if (table := tensors.get("per_layer_token_embd.weight")) is not None:
        own["vocab_size_per_layer_input"] = table.shape[0]
    if model_type == "gemma3n_text":
        if (scales := get("activation_sparsity_scale")) is not None:
            own["activation_sparsity_pattern"] = _shares(scales)
        if (left := tensors.get("blk.0.laurel_l.weight")) is not None:
            own["laurel_rank"] = left.shape[0]
        return own
    kinds, sizes, counts = (config.get(key) for key in ("layer_types", "intermediate_size", "num_key_value_heads"))
    if not isinstance(kinds, list):
        raise CheckpointError("gemma4.attention.sliding_window_pattern does not say which layers have a window")
    if isinstance(sizes, list) and sizes:  # the last layers may have twice as much
        own |= {"intermediate_size": min(sizes), "use_double_wide_mlp": max(sizes) > min(sizes)}
    counts = counts if isinstance(counts, list) else [counts] * len(kinds)
    shapes = {"sliding_attention": get("attention.key_length_swa"), "full_attention": get("attention.key_length")}
    own["per_layer_config"] = {
        str(number): {"head_dim": shapes[kind], "num_key_value_heads": count}
        for number, (kind, count) in enumerate(zip(kinds, counts, strict=False))
    }
    first_full = kinds.index("full_attention") if "full_attention" in kinds else 0
    own |= {
        "head_dim": shapes["sliding_attention"],
        "num_key_value_heads": max((count for count in counts if isinstance(count, int)), default=None),
        "attention_k_eq_v": f"blk.{first_full}.attn_v.weight" not in tensors,
        "enable_moe_block": bool(get("expert_count")),
        "hidden_size_per_layer_input": get("embedding_length_per_layer_input", 0),
    }
    return own


def ropes(model_type: str, get: Callable[..., Any], rope: dict[str, Any]) -> dict[str, Any]:
    """`rope`: what the file says of full layers."""
    full = {"rope_theta": _GLOBAL_THETA, **rope}
    if model_type == "gemma4_text" and (factors := full.pop("factors", None)) is not None:
        turning = [factor for factor in factors if factor < _STILL]
        if set(turning) - {1.0} or factors[: len(turning)] != turning:
            raise CheckpointError("tensor 'rope_freqs.weight': scaled frequencies are not supported")
        if 2 * len(factors) != (size := get("attention.key_length")):
            raise CheckpointError(f"tensor 'rope_freqs.weight': {len(factors)} factors do not fit heads of {size}")
        full |= {"rope_type": "proportional", "partial_rotary_factor": len(turning) / len(factors)}
    return {"full_attention": full, "sliding_attention": {"rope_theta": get("rope.freq_base_swa", _LOCAL_THETA)}}


def _shares(deviations: Any) -> list[float]:
    """Of the gates of each layer, those that lie below so many standard deviations above their mean. A layer that cuts
    none has minus infinity."""
    if not isinstance(deviations, list) or any(type(each) is not float or not each < math.inf for each in deviations):
        raise CheckpointError("gemma3n.activation_sparsity_scale is not a list of numbers")
    return [NormalDist().cdf(each) for each in deviations]
