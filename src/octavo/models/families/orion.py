"""Orion: Llama with layer norms."""

from __future__ import annotations

from dataclasses import replace

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config)
    norm, bias = replace(common.norm, kind="layer", bias=True), config.flag("attention_bias", False)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
        ),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
    )
    return common.decoder([layer] * common.num_layers, norm=norm)
