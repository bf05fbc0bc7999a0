"""Bloom: ALiBi in place of positions, a norm behind the embedding, layer norms and biases, a plain MLP."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import QKV_BY_HEAD, Layout
from octavo.models.spec import AlibiSpec, ModelSpec

_NAMES: Final = {
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "rms_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "seq_length",
}  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}  # fmt: skip
HF: Final = Layout(
    renames=(
        (r"^transformer\.", ""), (r"^word_embeddings\.", "model.embed_tokens."),
        (r"^word_embeddings_layernorm\.", "model.embed_norm."), (r"^ln_f\.", "model.norm."),
        (r"^h\.", "model.layers."), (r"\.self_attention\.query_key_value\.", ".self_attn.qkv."),
        (r"\.self_attention\.dense\.", ".self_attn.o_proj."), (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
    ),
    splits=(QKV_BY_HEAD,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES)
    config.refuse_unless("apply_residual_connection_post_layernorm", (False,))
    # Older files have the size under one more name.
    config = config if config.get("hidden_size") is not None else config.aliased(hidden_size="n_embed")
    hidden = config.integer("hidden_size")
    common = read_common(
        config.with_defaults(_DEFAULTS).without("intermediate_size").merged({"intermediate_size": 4 * hidden})
    )
    norm = replace(common.norm, kind="layer", bias=True)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=common.heads, alibi=AlibiSpec(num_heads=common.heads.num_heads), scale=common.heads.head_dim**-0.5,
            bias=True, o_bias=True,
        ),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=True),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers, norm=norm, embedding_norm=norm)
