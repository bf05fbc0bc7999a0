"""Qwen3-Next and Qwen3.5, dense and with experts: a gated delta net in three layers of four, attention with gates in
every fourth."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import MAX_EXPERTS, Common, norm_offset, read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families.gated_delta import delta_kinds, read_delta
from octavo.models.families.qwen2_moe import sparse_layers
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "silu", "head_dim": 256, "partial_rotary_factor": 0.25, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    """Qwen3-Next."""
    return _spec(config, Routing(renormalize=config.flag("norm_topk_prob", True)))


def spec_3_5(config: ConfigReader) -> ModelSpec:
    """Qwen3.5, of which models with experts have them in all layers."""
    config = config.with_defaults({"intermediate_size": config.get("moe_intermediate_size")})
    return _spec(config, Routing())


def _spec(config: ConfigReader, routing: Routing) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    common = read_common(config, rotates_in_part=True, has_experts=True)
    delta = read_delta(config, common.norm)
    common = common.with_norm(offset=norm_offset(config))
    config.refuse_unless("attn_output_gate", (True,))
    config.refuse_unless("use_sliding_window", (False,))
    bias = config.flag("attention_bias", False)
    attention = Attention(
        heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, qk_norm=common.norm, is_gated=True,
        bias=bias, o_bias=bias,
    )  # fmt: skip
    mixers: dict[str, Block] = {"linear_attention": delta, "full_attention": attention}
    mlps = _mlps(config, common, routing)
    return common.decoder(
        Sequential(norm=common.norm, attention=mixers[kind], mlp=mlp)
        for kind, mlp in zip(delta_kinds(config, common.num_layers), mlps, strict=True)
    )


def _mlps(config: ConfigReader, common: Common, routing: Routing) -> list[Block]:
    dense = GatedMLP(size=common.intermediate_size, activation=common.activation)
    if not config.integer("num_experts", 0, MAX_EXPERTS, low=0):
        return [dense] * common.num_layers
    shared = shared_mlp(config.integer("shared_expert_intermediate_size"), common.activation, "mlp.shared_expert")
    experts = WithShared(experts=read_experts(config, common, routing=routing), shared=shared, has_gate=True)
    sparse = sparse_layers(config, common.num_layers)
    return [experts if number in sparse else dense for number in range(common.num_layers)]
