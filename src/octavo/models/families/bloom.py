"""Bloom: ALiBi in place of positions, a norm behind the embedding, layer norms and biases, a plain MLP."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import QKV_BY_HEAD, Layout
from octavo.models.spec import AlibiSpec, ModelSpec

_NAMES: Final = {
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "rms_norm_eps": "layer_norm_epsilon",
    "max_position_embeddings": "seq_length", "hidden_size": "n_embed",
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
    config = config.with_defaults(_DEFAULTS).replaced(intermediate_size=4 * config.integer("hidden_size"))
    common = read_common(config).with_norm(kind="layer", bias=True)
    layer = llama_layer(
        common, rope=None, alibi=AlibiSpec(num_heads=common.heads.num_heads), bias=True, o_bias=True,
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=True),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers, embedding_norm=common.norm)
