"""Orion: Llama with layer norms."""

from __future__ import annotations

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    common, bias = read_common(config).with_norm(kind="layer", bias=True), config.flag("attention_bias", False)
    return common.decoder([llama_layer(common, bias=bias, o_bias=bias)] * common.num_layers)
