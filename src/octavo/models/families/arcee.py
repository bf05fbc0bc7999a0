"""Arcee's AFM: Llama with a plain MLP of squared relu."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "relu2", "rms_norm_eps": 1e-5}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    common, bias = read_common(config), config.flag("attention_bias", False)
    mlp = MLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False))
    layer = llama_layer(common, mlp=mlp, bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers)
