"""Gemma 2: windows in every other layer, norms on both sides, and bounded scores and logits."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Sandwich
from octavo.models.common import layer_windows, norm_offset, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec

# transformers leaves out of a configuration what equals its defaults; these are Gemma's.
_DEFAULTS: Final[dict[str, Any]] = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}


def spec(config: ConfigReader) -> ModelSpec:
    # Null means none here; only where the key is absent does the default hold.
    attn_softcap = config.bound("attn_logit_softcapping") if config.has("attn_logit_softcapping") else 50.0
    logit_softcap = config.bound("final_logit_softcapping") if config.has("final_logit_softcapping") else 30.0
    config = config.merged(_DEFAULTS)
    config.refuse_unless("use_bidirectional_attention", (False,))
    common = read_common(config, activation_key="hidden_activation")
    common = common.with_norm(offset=norm_offset(config))
    bias = config.flag("attention_bias", False)

    def layer(window: int) -> Sandwich:
        return Sandwich(
            norm=common.norm,
            attention=Attention(
                heads=common.heads, rope=common.rope, scale=config.number("query_pre_attn_scalar", 256.0) ** -0.5,
                window=window, softcap=attn_softcap, bias=bias, o_bias=bias,
            ),
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )  # fmt: skip

    return common.decoder(
        [layer(window) for window in layer_windows(config, common.num_layers, pattern=2)],
        embedding_scale=common.hidden_size**0.5,
        logit_softcap=logit_softcap,
    )
