"""Phi-3, Phi-3.5 and Phi-4: Llama with fused matrices, an optional window, and ropes with two lists of factors."""

from __future__ import annotations

from typing import Final

from octavo.models.common import read_common, read_window
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import GATE_UP, GGUF_GATE_UP, GGUF_QKV, QKV, Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(renames=((r"\.qkv_proj\.", ".qkv."),), splits=(QKV, GATE_UP))
GGUF: Final = Layout(splits=(GGUF_QKV, GGUF_GATE_UP))


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config, rotates_in_part=True)
    bias = config.flag("attention_bias", False)
    return common.decoder([llama_layer(common, window=read_window(config), bias=bias, o_bias=bias)] * common.num_layers)
