"""Granite 3, dense: Llama with factors at four places.

What a block adds is multiplied by m before the sum. Norms do not see the size of their input, so the residual stream
is kept divided by m instead: the embedding is, and a norm's eps by m squared. That costs no step anything.
"""

from __future__ import annotations

from dataclasses import replace

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config)
    multiplier = config.number("residual_multiplier", 1.0)
    common = replace(common, norm=replace(common.norm, eps=common.norm.eps / multiplier**2))
    bias = config.flag("attention_bias", False)
    layer = llama_layer(
        common, scale=config.number("attention_multiplier", 1.0), bias=bias, o_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )  # fmt: skip
    return common.decoder(
        [layer] * common.num_layers,
        embedding_scale=config.number("embedding_multiplier", 1.0) / multiplier,
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )
