"""Mistral: Llama with a sliding window in all layers (of the first version; later ones set it to null)."""

from __future__ import annotations

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import MAX_POSITIONS, ConfigReader
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("layer_types", ())
    common = read_common(config)
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window", high=MAX_POSITIONS)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
    )
    return common.decoder([layer] * common.num_layers)
