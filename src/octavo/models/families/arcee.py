"""Arcee's AFM: Llama with a plain MLP of squared relu."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "relu2", "rms_norm_eps": 1e-5}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    common, bias = read_common(config), config.flag("attention_bias", False)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
        ),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False)),
    )
    return common.decoder([layer] * common.num_layers)
