"""Phi-3, Phi-3.5 and Phi-4: Llama with fused matrices, an optional window, and ropes with two lists of factors."""

from __future__ import annotations

from typing import Final

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common, read_window
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import GATE_UP, GGUF_GATE_UP, GGUF_QKV, QKV, Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(renames=((r"\.qkv_proj\.", ".qkv."),), splits=(QKV, GATE_UP))
GGUF: Final = Layout(splits=(GGUF_QKV, GGUF_GATE_UP))


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config, rotates_in_part=True)
    bias = config.flag("attention_bias", False)
    window = read_window(config)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window, bias=bias,
            o_bias=bias,
        ),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
