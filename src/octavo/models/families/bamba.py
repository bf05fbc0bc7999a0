"""Bamba: Mamba 2 in most layers, attention that rotates half of each head in the others."""

from __future__ import annotations

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.mamba import mamba_width, read_mamba2
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults({"partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "hidden_act": "silu"})
    common = read_common(config, rotates_in_part=True)
    bias = config.flag("attention_bias", False)
    attention: Block = Attention(
        heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
    )
    mamba: Block = read_mamba2(config, common.norm, mamba_width(config))
    mlp = GatedMLP(size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False))
    attends = config.get("attn_layer_indices") or []
    if not isinstance(attends, list) or any(number not in range(common.num_layers) for number in attends):
        raise config.fail("attn_layer_indices", f"is not a list of some of {common.num_layers} layers")
    return common.decoder(
        Sequential(norm=common.norm, attention=attention if number in attends else mamba, mlp=mlp)
        for number in range(common.num_layers)
    )
