"""OLMo 1: Llama with layer norms that have no weights. OLMo 2 and 3: norms of what each block adds, and of whole rows
of q and k; in OLMo 3 three layers of four have a window, whose rope is never scaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, PostNorm
from octavo.models.common import Common, layer_ropes, layer_windows, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec, RopeSpec

_EPS: Final = 1e-5
_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "rms_norm_eps": _EPS}
_OLMO3_THETA: Final = 500_000.0


def olmo(config: ConfigReader) -> ModelSpec:
    common, bias = read_common(config.with_defaults(_DEFAULTS)), config.flag("attention_bias", False)
    common = common.with_norm(eps=_EPS, kind="layer", has_weight=False)
    layer = llama_layer(common, bias=bias, o_bias=bias, clip=config.bound("clip_qkv"))
    return common.decoder([layer] * common.num_layers)


def olmo2(config: ConfigReader) -> ModelSpec:
    common = read_common(config.with_defaults(_DEFAULTS))
    return _model(config, common, [(0, common.rope)] * common.num_layers)


def olmo3(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults({**_DEFAULTS, "sliding_window": 4096})
    common = read_common(config.without("rope_parameters", "rope_scaling"))
    theta = config.number("rope_theta", _OLMO3_THETA)
    rope, local_rope = layer_ropes(config, common, theta, theta)
    windows = layer_windows(config, common.num_layers, pattern=4)
    return _model(config, common, [(window, local_rope if window else rope) for window in windows])


def _model(config: ConfigReader, common: Common, layers: Sequence[tuple[int, RopeSpec]]) -> ModelSpec:
    config.refuse_unless("clip_qkv", ())
    bias = config.flag("attention_bias", False)

    def layer(window: int, rope: RopeSpec) -> PostNorm:
        return PostNorm(
            norm=common.norm,
            attention=Attention(
                heads=common.heads, rope=rope, scale=common.heads.head_dim**-0.5, window=window, qk_norm=common.norm,
                qk_norm_of="row", bias=bias, o_bias=bias,
            ),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )  # fmt: skip

    return common.decoder([layer(*each) for each in layers])
