"""Qwen3 with a mixture of experts in place of the MLP, in all layers or in every few."""

from __future__ import annotations

from octavo.models.blocks import Sequential
from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.families.qwen2 import layer_windows
from octavo.models.families.qwen2_moe import sparse_layers
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(num_experts="num_local_experts")
    config = config.with_defaults({"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768})
    common = read_common(config, has_experts=True)
    bias = config.flag("attention_bias", False)
    experts = read_experts(config, common, routing=Routing(renormalize=config.flag("norm_topk_prob", False)))

    def layer(number: int, window: int) -> Sequential:
        mlp = experts if number in sparse else None
        return llama_layer(common, mlp=mlp, window=window, qk_norm=common.norm, bias=bias, o_bias=bias)

    windows, sparse = layer_windows(config, common.num_layers), sparse_layers(config, common.num_layers)
    return common.decoder([layer(number, window) for number, window in enumerate(windows)])
