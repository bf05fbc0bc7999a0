"""Jamba: Mamba in most layers, attention without positions in the others, experts in every few."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import MAX_EXPERTS, read_common, read_experts
from octavo.models.config_reader import MAX_LAYERS, MAX_STATE_SIZE, MAX_TAPS, ConfigReader
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec
from octavo.models.state_blocks import Mamba
from octavo.ops.routing import Routing

HF: Final = Layout(
    renames=(
        (r"\.pre_ff_layernorm\.", ".post_attention_layernorm."), (r"^model\.final_layernorm\.", "model.norm."),
        (r"\.feed_forward\.", ".mlp."), (r"\.mlp\.router\.", ".mlp.gate."),
        (r"\.mamba\.dt_layernorm\.", ".mamba.dt_in_layernorm."), (r"\.mamba\.(A_log|D)$", r".mamba.\1.weight"),
    ),
    splits=(
        Split(r"(.*\.mamba\.)in_proj\.(\w+)", (r"\1in_proj.\2", r"\1gate_proj.\2")),
        Split(r"(.*\.mamba\.)x_proj\.weight", (r"\1dt_in_proj.weight", r"\1b_proj.weight", r"\1c_proj.weight")),
    ),
    transposed=r".*\.mamba\.(?:conv1d|A_log)\.weight",
)  # fmt: skip

_DEFAULTS: Final[dict[str, Any]] = {"num_experts": 16, "num_experts_per_tok": 2}


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(moe_intermediate_size="intermediate_size").with_defaults(_DEFAULTS)
    common = read_common(config, has_experts=True)
    dt_rank = None if config.get("mamba_dt_rank") == "auto" else config.get("mamba_dt_rank")
    mamba = Mamba(
        width=common.hidden_size * config.integer("mamba_expand", 2, 64),
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

    def every(kind: str, period: int, offset: int) -> tuple[int, int]:
        period = config.integer(f"{kind}_layer_period", period, MAX_LAYERS)
        return period, config.integer(f"{kind}_layer_offset", offset, period - 1, low=0)

    (attn_period, attn_offset), (expert_period, expert_offset) = every("attn", 8, 4), every("expert", 2, 1)
    return common.decoder(
        Sequential(
            norm=common.norm,
            attention=attention if number % attn_period == attn_offset else mamba,
            mlp=experts if number % expert_period == expert_offset else dense,
        )
        for number in range(common.num_layers)
    )
