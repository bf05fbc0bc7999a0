"""Qwen2 with a mixture of experts and a gated MLP beside it, in all layers or in every few."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families.llama import llama_layer
from octavo.models.families.qwen2 import layer_windows
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 60, "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.merged(_DEFAULTS)
    if config.get("layer_types") is None:
        # Versions of the model's code do not agree on which layers would have it.
        config.refuse_unless("use_sliding_window", (False,))
    common = read_common(config, has_experts=True)
    shared = shared_mlp(config.integer("shared_expert_intermediate_size"), common.activation, "mlp.shared_expert")
    routing = Routing(renormalize=config.flag("norm_topk_prob", False))
    experts = WithShared(experts=read_experts(config, common, routing=routing), shared=shared, has_gate=True)
    bias = config.flag("qkv_bias", True)
    windows, sparse = layer_windows(config, common.num_layers), sparse_layers(config, common.num_layers)
    return common.decoder(
        [
            llama_layer(common, mlp=experts if number in sparse else None, window=window, bias=bias)
            for number, window in enumerate(windows)
        ]
    )


def sparse_layers(config: ConfigReader, num_layers: int) -> set[int]:
    """Those with experts: every `decoder_sparse_step`-th, but for `mlp_only_layers`."""
    step, dense = config.integer("decoder_sparse_step", 1, MAX_LAYERS), config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(number) is int for number in dense):
        raise config.fail("mlp_only_layers", "is not a list of layers")
    return {number for number in range(num_layers) if (number + 1) % step == 0 and number not in dense}
