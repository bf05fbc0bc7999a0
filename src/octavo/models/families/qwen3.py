"""Qwen3, dense: Qwen2 with a norm on each head of q and k in place of the biases."""

from __future__ import annotations

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.families.qwen2 import layer_windows
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    config = config.merged({"head_dim": 128})
    common = read_common(config)
    bias = config.flag("attention_bias", False)
    windows = layer_windows(config, common.num_layers)
    return common.decoder(
        [llama_layer(common, window=window, qk_norm=common.norm, bias=bias, o_bias=bias) for window in windows]
    )
