"""OLMoE: norms of whole rows of q and k, and many small experts whose weights are parts of the softmax over all."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, Sequential
from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 64, "num_experts_per_tok": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.without("moe_intermediate_size").aliased(moe_intermediate_size="intermediate_size")
    config = config.with_defaults(_DEFAULTS)
    config.refuse_unless("clip_qkv", ())
    common = read_common(config, has_experts=True)
    bias = config.flag("attention_bias", False)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, qk_norm=common.norm,
            qk_norm_of="row", bias=bias, o_bias=bias,
        ),
        mlp=read_experts(config, common, routing=Routing(renormalize=config.flag("norm_topk_prob", False))),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
