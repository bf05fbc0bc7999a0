"""Nemotron 3 and 4, and Minitron: layer norms around one, a plain MLP of squared relu, heads rotated in part."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, NormSpec

_NAMES: Final = {"rms_norm_eps": "norm_eps", "partial_rotary_factor": "rope_percent"}
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "relu2", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "max_position_embeddings": 4096,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES).with_defaults(_DEFAULTS)
    common = read_common(config, rotates_in_part=True)
    # In GGUF the 1 has been added (`gguf_config`).
    offset = 0.0 if config.get("rms_norm_offset") == 0 else 1.0
    norm = NormSpec(eps=common.norm.eps, kind="layer", bias=True, offset=offset)
    bias = config.flag("attention_bias", False)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
        ),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False)),
    )
    return common.decoder([layer] * common.num_layers, norm=norm)
