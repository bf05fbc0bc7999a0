"""Arctic: in each layer a small dense MLP, and experts of what went into the layer."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Attention, GatedMLP
from octavo.models.common import read_common, read_experts, with_local_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.expert_blocks import DenseBesideExperts
from octavo.models.families.mixtral import HF as MIXTRAL
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

HF: Final = Layout(renames=((r"\.residual_mlp\.", ".mlp."), *MIXTRAL.renames))


def spec(config: ConfigReader) -> ModelSpec:
    config = with_local_experts(config)
    config.refuse_unless("moe_layer_frequency", (1,))
    for key in ("use_residual", "parallel_attn_mlp_res"):
        if not config.flag(key, False):
            raise config.fail(key, "is not supported: only Arctic's own layers are")
    config.refuse_unless("sliding_window", ())
    common = read_common(config, has_experts=True)
    attention = Attention(heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5)
    renormalize = config.integer("num_experts_per_tok", 1) > 1
    experts = read_experts(
        config.with_defaults({"num_experts_per_tok": 1}), common, routing=Routing(renormalize=renormalize)
    )
    # The dense MLP is as wide as the model.
    dense = GatedMLP(size=common.hidden_size, activation=common.activation)
    layer = DenseBesideExperts(norm=common.norm, attention=attention, mlp=dense, experts=experts)
    return common.decoder([layer] * common.num_layers)
