"""Ernie 4.5, dense: Llama with pairs of the rotation side by side."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.config_reader import ConfigReader
from octavo.models.families import llama
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 500_000.0, "head_dim": 128,
    "max_position_embeddings": 131_072,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(attention_bias="use_bias", mlp_bias="use_bias")
    return llama.spec(config.with_defaults(_DEFAULTS))
