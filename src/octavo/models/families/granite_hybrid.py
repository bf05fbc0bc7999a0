"""Granite 4, hybrid: Mamba 2 in most layers, attention in the others; experts with a shared MLP, or that MLP alone."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Final

from octavo.models.blocks import Attention, Block, Sequential
from octavo.models.common import read_experts
from octavo.models.config_reader import MAX_STATE_SIZE, MAX_TAPS, ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families import granite_moe
from octavo.models.families.granite import granite_decoder
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec, NormSpec
from octavo.models.state_blocks import Mamba2

#: Names of what one tensor of Mamba 2's holds, one below the other.
_INSIDE: Final = tuple(rf"\1{name}_proj.weight" for name in ("gate", "in", "b", "c", "dt"))
_CONVOLVED: Final = tuple(rf"\1conv_{name}.\2" for name in ("in", "b", "c"))
MAMBA2_HF: Final = Layout(
    renames=((r"\.mamba\.dt_bias$", ".mamba.dt_proj.bias"), (r"\.mamba\.(A_log|D)$", r".mamba.\1.weight")),
    splits=(
        Split(r"(.*\.mamba\.)in_proj\.weight", _INSIDE),
        Split(r"(.*\.mamba\.)conv1d\.(weight)", _CONVOLVED, "turned"),
        Split(r"(.*\.mamba\.)conv1d\.(bias)", _CONVOLVED),
    ),
)
HF: Final = replace(
    granite_moe.HF,
    renames=(*granite_moe.HF.renames, *MAMBA2_HF.renames),
    splits=(*granite_moe.HF.splits, *MAMBA2_HF.splits),
)


def spec(config: ConfigReader) -> ModelSpec:
    config, common, multiplier = granite_moe.read_granite(config)
    config.refuse_unless("position_embedding_type", ("rope", "nope"))
    bias, is_rotated = config.flag("attention_bias", False), config.get("position_embedding_type") == "rope"
    attention = Attention(
        heads=common.heads, rope=common.rope if is_rotated else None, bias=bias, o_bias=bias,
        scale=config.number("attention_multiplier", 1.0),
    )  # fmt: skip
    width = common.hidden_size * config.integer("mamba_expand", 2, 64)
    mamba = read_mamba2(config, replace(common.norm, eps=common.norm.eps * multiplier**2), width)
    mixers: dict[str, Block] = {
        "mamba": mamba, "linear_attention": mamba, "attention": attention, "full_attention": attention,
    }  # fmt: skip
    mlp: Block = shared_mlp(config.integer("shared_intermediate_size", 1024), common.activation)
    if config.get("num_experts") != 0:
        mlp = WithShared(experts=read_experts(config, common), shared=mlp)
    layers = [
        Sequential(norm=common.norm, attention=mixers[kind], mlp=mlp)
        for kind in hybrid_kinds(config, common.num_layers, mixers)
    ]
    return granite_decoder(config, common, layers, multiplier)


def hybrid_kinds(config: ConfigReader, num_layers: int, known: Collection[str]) -> list[str]:
    kinds = config.layer_kinds(num_layers, known)
    if not any("full" in kind or kind == "attention" for kind in kinds):
        raise config.fail("layer_types", "has no attention: models of states alone are not supported")
    return kinds


def read_mamba2(config: ConfigReader, norm: NormSpec, width: int) -> Mamba2:
    config.refuse_unless("mamba_proj_bias", (False,))
    config.refuse_unless("time_step_limit", ([0.0, math.inf], [0.0, {"__float__": "Infinity"}]))
    num_heads, num_groups = config.integer("mamba_n_heads", 128, width), config.integer("mamba_n_groups", 1, width)
    if width % num_heads:
        raise config.fail("mamba_n_heads", f"does not divide the {width} channels")
    config.refuse_unless("mamba_d_head", ("auto", width // num_heads))
    if num_heads % num_groups:
        raise config.fail("mamba_n_groups", f"does not divide the {num_heads} heads")
    return Mamba2(
        num_heads=num_heads, width=width, num_groups=num_groups, norm=norm,
        state_size=config.integer("mamba_d_state", 256, MAX_STATE_SIZE),
        taps=config.integer("mamba_d_conv", 4, MAX_TAPS, low=2), conv_bias=config.flag("mamba_conv_bias", True),
    )  # fmt: skip
