"""OLMoE: norms of whole rows of q and k, and many small experts whose weights are parts of the softmax over all."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 64, "num_experts_per_tok": 8, "hidden_act": "silu", "rms_norm_eps": 1e-5,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.without("moe_intermediate_size").aliased(moe_intermediate_size="intermediate_size")
    config = config.with_defaults(_DEFAULTS)
    config.refuse_unless("clip_qkv", ())  # here it would come behind the norms
    common = read_common(config, has_experts=True)
    bias = config.flag("attention_bias", False)
    experts = read_experts(config, common, routing=Routing(renormalize=config.flag("norm_topk_prob", False)))
    layer = llama_layer(common, mlp=experts, qk_norm=common.norm, qk_norm_of="row", bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers)
