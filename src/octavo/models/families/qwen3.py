"""Qwen3, dense: Qwen2 with a norm on each head of q and k in place of the biases."""

from __future__ import annotations

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.qwen2 import layer_windows
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    config = config.merged({"head_dim": 128})
    common = read_common(config)
    bias = config.flag("attention_bias", False)

    def layer(window: int) -> Sequential:
        return Sequential(
            norm=common.norm,
            attention=Attention(
                heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window,
                qk_norm=common.norm, bias=bias, o_bias=bias,
            ),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )  # fmt: skip

    return common.decoder([layer(window) for window in layer_windows(config, common.num_layers)])
