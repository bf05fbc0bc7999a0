"""Granite 4, hybrid: Mamba 2 in most layers, attention in the others; experts with a shared MLP, or that MLP alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.blocks import Attention, Block, Sequential
from octavo.models.common import read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families import granite_moe
from octavo.models.families.granite import granite_decoder
from octavo.models.layout import GGUF_EXPERTS
from octavo.models.mamba import MAMBA2_GGUF, MAMBA2_HF, mamba_width, read_mamba2
from octavo.models.spec import ModelSpec

HF: Final = replace(
    granite_moe.HF,
    renames=(*granite_moe.HF.renames, *MAMBA2_HF.renames),
    splits=(*granite_moe.HF.splits, *MAMBA2_HF.splits),
)
#: Where there are no experts, the MLP for every token has a dense one's name.
GGUF: Final = replace(
    MAMBA2_GGUF,
    renames=(*MAMBA2_GGUF.renames, (r"\.ffn_(gate|up|down)\.", r".ffn_\1_shexp.")),
    splits=(*MAMBA2_GGUF.splits, GGUF_EXPERTS),
    interleaved=True,
)


def spec(config: ConfigReader) -> ModelSpec:
    config, common, multiplier = granite_moe.read_granite(config)
    config.refuse_unless("position_embedding_type", ("rope", "nope"))
    bias, is_rotated = config.flag("attention_bias", False), config.get("position_embedding_type") == "rope"
    attention = Attention(
        heads=common.heads, rope=common.rope if is_rotated else None, bias=bias, o_bias=bias,
        scale=config.number("attention_multiplier", 1.0),
    )  # fmt: skip
    norm = replace(common.norm, eps=common.norm.eps * multiplier**2)
    mamba = read_mamba2(config, norm, mamba_width(config))
    mixers: dict[str, Block] = {
        "mamba": mamba, "linear_attention": mamba, "attention": attention, "full_attention": attention,
    }  # fmt: skip
    mlp: Block = shared_mlp(config.integer("shared_intermediate_size", 1024), common.activation)
    if config.get("num_experts") != 0:
        mlp = WithShared(experts=read_experts(config, common), shared=mlp)
    layers = [
        Sequential(norm=common.norm, attention=mixers[kind], mlp=mlp)
        for kind in config.layer_kinds(common.num_layers, mixers)
    ]
    return granite_decoder(config, common, layers, multiplier)
