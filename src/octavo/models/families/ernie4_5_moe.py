"""Ernie 4.5 with experts: a bias for choosing among softmax's parts, and shared ones beside them in most layers."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Block
from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families.llama import llama_layer
from octavo.models.layout import STACKED_EXPERTS, Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    renames=((r"\.mlp\.(gate\.)?moe_statics\.e_score_correction_bias$", ".mlp.gate.e_score_correction.bias"),),
    splits=STACKED_EXPERTS,
    interleaved=True,
)
_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 64, "num_experts_per_tok": 6, "moe_intermediate_size": 1536, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": True, "rope_theta": 500_000.0,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(num_experts="moe_num_experts", num_experts_per_tok="moe_k").with_defaults(_DEFAULTS)
    config.refuse_unless("moe_norm_min", (1e-12,))
    common = read_common(config, has_experts=True)
    bias = config.flag("use_bias", False)
    if bias and common.tie_word_embeddings:
        raise config.fail("use_bias", "is not supported beside tied embeddings")
    mixed: Block = read_experts(config, common, has_choice_bias=True)
    num_shared = config.integer("moe_num_shared_experts", 2, low=0)
    if num_shared:
        size = num_shared * config.integer("moe_intermediate_size")
        mixed = WithShared(experts=mixed, shared=shared_mlp(size, common.activation))
    sparse = _sparse_layers(config, common.num_layers)
    layers = [
        llama_layer(common, mlp=mixed if number in sparse else None, mlp_bias=bias, bias=bias, o_bias=bias)
        for number in range(common.num_layers)
    ]
    return common.decoder(layers, lm_head_bias=bias)


def _sparse_layers(config: ConfigReader, num_layers: int) -> set[int]:
    """Every `moe_layer_interval`-th of a range of layers, whose end is counted in; -1: the last."""
    first = config.integer("moe_layer_start_index", 1, MAX_LAYERS, low=0)
    last = config.get("moe_layer_end_index")
    last = num_layers - 1 if last in (None, -1) else config.integer("moe_layer_end_index", high=MAX_LAYERS)
    step = config.integer("moe_layer_interval", 1, MAX_LAYERS)
    return {number for number in range(num_layers) if first <= number <= last and (number + 1) % step == 0}
