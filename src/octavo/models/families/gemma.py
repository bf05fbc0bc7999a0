"""Gemma 1: Llama with norms around one, a scaled embedding and gelu."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import norm_offset, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec

# Where a file says `hidden_act: gelu`, the model was trained with the approximation by tanh.
_DEFAULTS: Final[dict[str, Any]] = {
    "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS)
    config.refuse_unless("use_bidirectional_attention", (False,))
    common = read_common(config, activation_key="hidden_activation").with_norm(offset=norm_offset(config))
    bias = config.flag("attention_bias", False)
    layer = llama_layer(common, bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers, embedding_scale=common.hidden_size**0.5)
