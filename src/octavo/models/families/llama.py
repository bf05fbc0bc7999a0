"""Llama 1 to 3.x, and what took its shape (SmolLM, Yi, many more)."""

from __future__ import annotations

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config)
    bias = config.flag("attention_bias", False)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
        ),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False)),
    )
    return common.decoder([layer] * common.num_layers)
