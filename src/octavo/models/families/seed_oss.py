"""Seed-OSS: Llama with biases of q, k and v."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "head_dim": 128, "max_position_embeddings": 524_288}
GGUF: Final = Layout(renames=((r"\.post_attention_norm\.", ".ffn_norm."),))


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config.with_defaults(_DEFAULTS))
    layer = llama_layer(
        common, bias=config.flag("attention_bias", True), o_bias=config.flag("attention_out_bias", False),
        mlp_bias=config.flag("mlp_bias", False),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
