"""Granite 3, dense: Llama with factors at four places.

What a block adds is multiplied by m before the sum. Norms do not see the size of their input, so the residual stream
is kept divided by m instead: the embedding is, and a norm's eps by m squared. That costs no step anything.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.models.blocks import Layer
from octavo.models.common import Common, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    common, multiplier = with_multiplier(config, read_common(config))
    bias = config.flag("attention_bias", False)
    layer = llama_layer(
        common, scale=config.number("attention_multiplier", 1.0), bias=bias, o_bias=bias,
        mlp_bias=config.flag("mlp_bias", False),
    )  # fmt: skip
    return granite_decoder(config, common, [layer] * common.num_layers, multiplier)


def with_multiplier(config: ConfigReader, common: Common) -> tuple[Common, float]:
    """With the norms of a residual stream that is kept divided by m, and m."""
    multiplier = config.number("residual_multiplier", 1.0)
    return common.with_norm(eps=common.norm.eps / multiplier**2), multiplier


def granite_decoder(config: ConfigReader, common: Common, layers: Sequence[Layer], multiplier: float) -> ModelSpec:
    scale = config.number("embedding_multiplier", 1.0) / multiplier
    return common.decoder(
        layers,
        embedding_scale=scale,
        given_scale=scale,
        logit_scale=1 / config.number("logits_scaling", 1.0),
    )
