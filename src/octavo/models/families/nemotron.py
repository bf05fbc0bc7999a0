"""Nemotron 3 and 4, and Minitron: layer norms around one, a plain MLP of squared relu, heads rotated in part."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import norm_offset, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec

_NAMES: Final = {"rms_norm_eps": "norm_eps", "partial_rotary_factor": "rope_percent"}
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "relu2", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "max_position_embeddings": 4096,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES).with_defaults(_DEFAULTS)
    common = read_common(config, rotates_in_part=True)
    common = common.with_norm(kind="layer", bias=True, offset=norm_offset(config))
    bias = config.flag("attention_bias", False)
    mlp = MLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False))
    return common.decoder([llama_layer(common, mlp=mlp, bias=bias, o_bias=bias)] * common.num_layers)
