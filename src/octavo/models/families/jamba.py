"""Jamba: Mamba in most layers, attention without positions in the others, experts in every few."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import MAX_EXPERTS, read_common, read_experts
from octavo.models.config_reader import MAX_LAYERS, MAX_STATE_SIZE, MAX_TAPS, ConfigReader
from octavo.models.layout import GGUF_EXPERTS, Layout
from octavo.models.mamba import MAMBA_GGUF, MAMBA_HF, mamba_width
from octavo.models.spec import ModelSpec
from octavo.models.state_blocks import Mamba
from octavo.ops.routing import Routing

HF: Final = Layout(
    renames=(
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."), (r"^model\.final_layernorm\.", "model.norm."),
        (r"\.feed_forward\.", ".mlp."), (r"\.mlp\.router\.", ".mlp.gate."),
        *MAMBA_HF.renames,
    ),
    splits=MAMBA_HF.splits,
    transposed=MAMBA_HF.transposed,
)  # fmt: skip
GGUF: Final = replace(MAMBA_GGUF, splits=(*MAMBA_GGUF.splits, GGUF_EXPERTS))

_DEFAULTS: Final[dict[str, Any]] = {"num_experts": 16, "num_experts_per_tok": 2}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(moe_intermediate_size="intermediate_size").with_defaults(_DEFAULTS)
    common = read_common(config, has_experts=True)
    config.refuse_unless("hidden_act", ("silu", "swish"))
    dt_rank = None if config.get("mamba_dt_rank") == "auto" else config.get("mamba_dt_rank")
    mamba = Mamba(
        width=mamba_width(config),
        state_size=config.integer("mamba_d_state", 16, MAX_STATE_SIZE),
        taps=config.integer("mamba_d_conv", 4, MAX_TAPS, low=2),
        dt_rank=-(-common.hidden_size // 16) if dt_rank is None else config.integer("mamba_dt_rank"),
        norm=common.norm, bias=config.flag("mamba_proj_bias", False), conv_bias=config.flag("mamba_conv_bias", True),
    )  # fmt: skip
    attention = Attention(heads=common.heads, scale=common.heads.head_dim**-0.5)
    dense = GatedMLP(size=common.intermediate_size, activation=common.activation)
    experts: Block = dense
    if config.integer("num_experts", high=MAX_EXPERTS) > 1:
        experts = read_experts(config, common, routing=Routing(renormalize=False))

    def kinds(key: str, names: tuple[str, str], kind: str, period: int, offset: int) -> list[str]:
        """Of each layer; all but every so many are of the first. Files of GGUF list them."""
        if config.get(key) is not None:
            return config.layer_kinds(common.num_layers, names, key)
        period = config.integer(f"{kind}_layer_period", period, MAX_LAYERS)
        offset = config.integer(f"{kind}_layer_offset", offset, period - 1, low=0)
        return [names[number % period == offset] for number in range(common.num_layers)]

    mixers: dict[str, Block] = {"mamba": mamba, "attention": attention}
    mlps: dict[str, Block] = {"dense": dense, "sparse": experts}
    mixer_kinds = kinds("layer_types", ("mamba", "attention"), "attn", 8, 4)
    mlp_kinds = kinds("mlp_layer_types", ("dense", "sparse"), "expert", 2, 1)
    return common.decoder(
        Sequential(norm=common.norm, attention=mixers[mixer], mlp=mlps[mlp])
        for mixer, mlp in zip(mixer_kinds, mlp_kinds, strict=True)
    )
