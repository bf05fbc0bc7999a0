"""Gemma 2: windows in every other layer, norms on both sides, and bounded scores and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.config_reader import MAX_POSITIONS, ConfigReader, base_spec, read_layer_types
from octavo.models.spec import ArchSpec

# transformers leaves out of a configuration what equals its defaults; these are Gemma's.
_DEFAULTS: Final[dict[str, Any]] = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def spec(config: dict[str, Any]) -> ArchSpec:
    reader = with_defaults(config, _DEFAULTS)
    base = base_spec(reader, activation_key="hidden_activation")
    types = read_layer_types(reader, base.num_layers)
    slides = [layer % 2 == 0 for layer in range(base.num_layers)] if types is None else [t == "sliding" for t in types]
    window = reader.integer("sliding_window", high=MAX_POSITIONS)
    return replace(
        gemma_blocks(base, reader),
        layer_windows=tuple(window if slide else 0 for slide in slides),
        # Null means none here; only where the key is absent does the default hold.
        attn_softcap=softcap(reader, "attn_logit_softcapping") if "attn_logit_softcapping" in config else 50.0,
        logit_softcap=softcap(reader, "final_logit_softcapping") if "final_logit_softcapping" in config else 30.0,
    )


def with_defaults(config: dict[str, Any], defaults: dict[str, Any]) -> ConfigReader:
    """The configuration with a family's defaults where it says nothing or null."""
    return ConfigReader({**defaults, **{key: value for key, value in config.items() if value is not None}})


def gemma_blocks(base: ArchSpec, reader: ConfigReader) -> ArchSpec:
    """What Gemma 2 and 3 share. `rms_norm_offset` is no key of Hugging Face's: `gguf_config` sets it to 0, because
    GGUF stores the norms with the 1 already added."""
    reader.refuse_unless("use_bidirectional_attention", (False,))
    bias = reader.flag("attention_bias", False)
    return replace(
        base,
        attention_bias=bias,
        o_bias=bias,
        norm_offset=0.0 if reader.get("rms_norm_offset") == 0 else 1.0,
        sandwich_norms=True,
        embedding_scale=base.hidden_size**0.5,
        attn_scale=reader.number("query_pre_attn_scalar", 256.0) ** -0.5,
    )


def softcap(reader: ConfigReader, key: str) -> float:
    return 0.0 if reader.get(key) is None else reader.number(key)
