"""Qwen3 with a mixture of experts in place of the MLP, in all layers or in every few."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Attention, Block, GatedMLP, MixtureOfExperts, Sequential
from octavo.models.common import MAX_EXPERTS, read_common
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.families.qwen2 import layer_windows
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

GGUF: Final = Layout(splits=(Split(r"(blk\.\d+\.ffn_(?:gate|up|down)_exps)\.weight", (r"\1.#.weight",), "stack"),))


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(num_experts="num_local_experts")
    num_experts = config.integer("num_experts", 128, MAX_EXPERTS)
    common = read_common(config.without("num_experts", "num_local_experts"))
    bias, step = config.flag("attention_bias", False), config.integer("decoder_sparse_step", 1, MAX_LAYERS)
    config.refuse_unless("mlp_only_layers", ([],))
    experts = MixtureOfExperts(
        num_experts=num_experts, top_k=config.integer("num_experts_per_tok", 8, num_experts),
        size=config.integer("moe_intermediate_size"), activation=common.activation,
        routing=Routing(renormalize=config.flag("norm_topk_prob", False)),
    )  # fmt: skip
    dense = GatedMLP(size=common.intermediate_size, activation=common.activation)

    def layer(mlp: Block, window: int) -> Sequential:
        attention = Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window,
            qk_norm=common.norm, bias=bias, o_bias=bias,
        )  # fmt: skip
        return Sequential(norm=common.norm, attention=attention, mlp=mlp)

    windows = layer_windows(config, common.num_layers)
    return common.decoder(
        [layer(dense if number % step else experts, window) for number, window in enumerate(windows, 1)]
    )
