"""DeepSeek-MoE, the first: Llama with experts and shared ones beside them, behind dense layers."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Block
from octavo.models.common import MAX_EXPERTS, Common, read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.expert_blocks import MixtureOfExperts, WithShared, shared_mlp
from octavo.models.families.glm4_moe import behind_dense
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu"}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(num_experts="n_routed_experts").with_defaults(_DEFAULTS)
    config.refuse_unless("moe_layer_freq", (1,))
    config.refuse_unless("scoring_func", ("softmax",))
    common = read_common(config, has_experts=True)
    bias = config.flag("attention_bias", False)
    routing = Routing(
        renormalize=config.flag("norm_topk_prob", False), factor=config.number("routed_scaling_factor", 1.0)
    )
    mixed = with_shared(config, common, read_experts(config, common, routing=routing))
    dense, sparse = (llama_layer(common, mlp=mlp, bias=bias, o_bias=bias) for mlp in (None, mixed))
    return common.decoder(behind_dense(config, dense, sparse, common.num_layers))


def with_shared(config: ConfigReader, common: Common, experts: MixtureOfExperts) -> Block:
    """The experts, and beside them an MLP as wide as `n_shared_experts` of them, if there are any."""
    count = config.integer("n_shared_experts", 0, MAX_EXPERTS, low=0)
    if not count:
        return experts
    return WithShared(experts=experts, shared=shared_mlp(count * experts.size, common.activation))
