"""Gemma 1: Llama with norms around one, a scaled embedding and gelu."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.gemma2 import gemma_norm
from octavo.models.spec import ModelSpec

# Where a file says `hidden_act: gelu`, the model was trained with the approximation by tanh.
_DEFAULTS: Final[dict[str, Any]] = {
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    config.refuse_unless("use_bidirectional_attention", (False,))
    common = read_common(config, activation_key="hidden_activation")
    norm, bias = gemma_norm(common, config), config.flag("attention_bias", False)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
        ),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
    )
    return common.decoder([layer] * common.num_layers, norm=norm, embedding_scale=common.hidden_size**0.5)
