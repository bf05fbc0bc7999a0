"""Falcon-H1: in each layer attention and Mamba 2 side by side, then an MLP, with factors at a dozen places.

Factors of the embeddings, of scores and of logits are numbers of the program; what Mamba 2's convolutions take has
them in their filters. The others multiply weights while they load.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.blocks import Attention, GatedMLP, Sequential, SideBySide
from octavo.models.common import Common, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout
from octavo.models.mamba import MAMBA2_GGUF, MAMBA2_HF, mamba_width, read_mamba2
from octavo.models.spec import ModelSpec
from octavo.models.state_blocks import Mamba2

HF: Final = Layout(
    renames=(
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."), (r"^model\.final_layernorm\.", "model.norm."),
        (r"\.feed_forward\.", ".mlp."), *MAMBA2_HF.renames,
    ),
    splits=MAMBA2_HF.splits,
)  # fmt: skip
#: Files have the norm in front of the MLP without the end of its name.
GGUF: Final = replace(MAMBA2_GGUF, renames=(*MAMBA2_GGUF.renames, (r"\.ffn_norm$", ".ffn_norm.weight")))


def spec(config: ConfigReader) -> ModelSpec:
    config = config if config.has("mamba_d_ssm") else config.merged({"mamba_d_ssm": 1024})
    common = read_common(config.with_defaults({"rms_norm_eps": 1e-5, "hidden_act": "silu"}))
    gate_scale, down_scale = config.factors("mlp_multipliers", 2)
    mlp = GatedMLP(
        size=common.intermediate_size, activation=common.activation, bias=config.flag("mlp_bias", False),
        gate_scale=gate_scale, down_scale=down_scale,
    )  # fmt: skip
    layer = Sequential(
        norm=common.norm, attention=SideBySide(first=_mamba(config, common), second=_attention(config, common)), mlp=mlp
    )
    return common.decoder(
        [layer] * common.num_layers,
        embedding_scale=config.number("embedding_multiplier", 1.0),
        logit_scale=config.number("lm_head_multiplier", 1.0),
    )


def _attention(config: ConfigReader, common: Common) -> Attention:
    """What multiplies its input multiplies queries, keys and values, as long as these have no bias."""
    bias, inside = config.flag("attention_bias", False), config.number("attention_in_multiplier", 1.0)
    if bias:
        config.refuse_unless("attention_in_multiplier", (1, 1.0))
    return Attention(
        heads=common.heads, rope=common.rope, bias=bias, o_bias=bias,
        scale=common.heads.head_dim**-0.5 * inside**2 * config.number("key_multiplier", 1.0),
        o_scale=inside * config.number("attention_out_multiplier", 1.0),
    )  # fmt: skip


def _mamba(config: ConfigReader, common: Common) -> Mamba2:
    norm = None
    if config.flag("mamba_rms_norm", False):
        config = config.with_defaults({"mamba_norm_before_gate": True})
        config.refuse_unless("mamba_norm_before_gate", (False,))
        norm = common.norm
    inside = config.number("ssm_in_multiplier", 1.0)
    gate, x, b, c, dt = (inside * factor for factor in config.factors("ssm_multipliers", 5))
    return read_mamba2(
        config, norm, mamba_width(config), out_bias=config.flag("projectors_bias", False), gate_scale=gate, x_scale=x,
        b_scale=b, c_scale=c, dt_scale=dt, out_scale=config.number("ssm_out_multiplier", 1.0),
    )  # fmt: skip
