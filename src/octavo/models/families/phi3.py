"""Phi-3, Phi-3.5 and Phi-4: Llama with fused matrices, an optional window, and ropes with two lists of factors."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import MAX_POSITIONS, ConfigReader
from octavo.models.layout import Layout, Split
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    splits=(
        Split(r"(.*\.self_attn\.)qkv_proj\.(\w+)", (r"\1q_proj.\2", r"\1k_proj.\2", r"\1v_proj.\2")),
        Split(r"(.*\.mlp\.)gate_up_proj\.(\w+)", (r"\1gate_proj.\2", r"\1up_proj.\2")),
    )
)
GGUF: Final = Layout(
    splits=(
        Split(r"(blk\.\d+\.attn_)qkv\.(\w+)", (r"\1q.\2", r"\1k.\2", r"\1v.\2")),
        Split(r"(blk\.\d+\.ffn_)up\.(\w+)", (r"\1gate.\2", r"\1up.\2")),
    )
)


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config, rotates_in_part=True)
    bias = config.flag("attention_bias", False)
    window = 0 if config.get("sliding_window") is None else config.integer("sliding_window", high=MAX_POSITIONS)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window, bias=bias,
            o_bias=bias,
        ),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
