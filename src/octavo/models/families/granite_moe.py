"""Granite 3 with experts: Llama with factors at four places, and an MLP for every token in some models.

What a block adds is multiplied by m before the sum; see `granite` for where m goes.
"""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Block
from octavo.models.common import Common, read_common, read_experts, with_local_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families.granite import granite_decoder, with_multiplier
from octavo.models.families.llama import llama_layer
from octavo.models.layout import STACKED_EXPERTS, Layout, Split
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    renames=(
        (r"\.block_sparse_moe\.router\.(layer\.)?", ".mlp.gate."), (r"\.block_sparse_moe\.", ".mlp."),
        (r"\.mlp\.input_linear\.weight$", ".mlp.experts.gate_up_proj"),
        (r"\.mlp\.output_linear\.weight$", ".mlp.experts.down_proj"),
        (r"\.shared_mlp\.output_linear\.", ".mlp.shared_experts.down_proj."),
    ),
    splits=(
        *STACKED_EXPERTS,
        Split(
            r"(.*)\.shared_mlp\.input_linear\.(\w+)",
            (r"\1.mlp.shared_experts.gate_proj.\2", r"\1.mlp.shared_experts.up_proj.\2"),
        ),
    ),
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {"num_experts": 8, "num_experts_per_tok": 2, "hidden_act": "silu"}


def spec(config: ConfigReader) -> ModelSpec:
    config, common, multiplier = read_granite(config)
    bias = config.flag("attention_bias", False)
    mlp: Block = read_experts(config, common)
    if config.get("shared_intermediate_size"):
        shared = shared_mlp(config.integer("shared_intermediate_size"), common.activation)
        mlp = WithShared(experts=mlp, shared=shared)
    scale = config.number("attention_multiplier", 1.0)
    layer = llama_layer(common, mlp=mlp, scale=scale, bias=bias, o_bias=bias)
    return granite_decoder(config, common, [layer] * common.num_layers, multiplier)


def read_granite(config: ConfigReader) -> tuple[ConfigReader, Common, float]:
    """The configuration under common names, what it says, and what multiplies each sum."""
    config = with_local_experts(config).with_defaults(_DEFAULTS)
    return config, *with_multiplier(config, read_common(config, has_experts=True))
