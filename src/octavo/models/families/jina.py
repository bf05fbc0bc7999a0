"""Jina's encoders: version 2 tells positions by ALiBi to both sides and has a gated MLP; version 3 rotates heads."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, GatedMLP
from octavo.models.common import read_activation
from octavo.models.config_reader import ConfigReader
from octavo.models.families.bert import HF, encoder_rope, normed_sums, pooler, refuse_adapters
from octavo.models.layout import GATE_UP, GGUF_GATE_UP, GGUF_QKV, QKV, Layout
from octavo.models.spec import AlibiSpec, HeadSpec, ModelSpec

V2_HF: Final = Layout(
    ignored=HF.ignored,
    renames=(
        (r"\.mlp\.gated_layers\.", ".mlp.gate_up_proj."), (r"\.mlp\.up_gated_layer\.", ".mlp.gate_up_proj."),
        (r"\.mlp\.(wo|down_layer)\.", ".mlp.down_proj."), (r"\.mlp\.layernorm\.", ".post_attention_layernorm."),
        *HF.renames,
    ),
    splits=(GATE_UP,),
)  # fmt: skip
V3_HF: Final = Layout(
    ignored=(r"lm_head\..*",),
    renames=(
        (r"^roberta\.", ""), (r"^embeddings\.word_embeddings\.", "model.embed_tokens."),
        (r"^embeddings\.token_type_embeddings\.", "model.token_types."),
        (r"^(emb_ln|embeddings\.LayerNorm)\.", "model.embed_norm."), (r"^(encoder\.)?layers\.", "model.layers."),
        (r"\.mixer\.Wqkv\.", ".self_attn.qkv."), (r"\.mixer\.out_proj\.", ".self_attn.o_proj."),
        (r"\.(norm1|post_attention_layernorm)\.", ".input_layernorm."),
        (r"\.(norm2|post_mlp_layernorm)\.", ".post_attention_layernorm."),
        (r"\.mlp\.fc1\.", ".mlp.up_proj."), (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    ),
    splits=(QKV,),
)  # fmt: skip
#: Of files that have both halves of the MLP as one, and of older ones that have them apart.
V2_GGUF: Final = Layout(splits=(GGUF_QKV, GGUF_GATE_UP))
V2_APART_GGUF: Final = Layout(splits=(GGUF_QKV,))
V3_GGUF: Final = Layout(splits=(GGUF_QKV,))
_DEFAULTS_2: Final[dict[str, Any]] = {
    "layer_norm_eps": 1e-12, "type_vocab_size": 2, "max_position_embeddings": 8192, "hidden_act": "gelu",
}  # fmt: skip
_DEFAULTS_3: Final[dict[str, Any]] = {
    "layer_norm_eps": 1e-5, "type_vocab_size": 1, "max_position_embeddings": 8194, "hidden_act": "gelu",
}  # fmt: skip
_THETA_3: Final = 20_000.0


def version_2(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS_2)
    config.refuse_unless("position_embedding_type", ("alibi",))
    config.refuse_unless("feed_forward_type", ("geglu",))
    heads = config.integer("num_attention_heads")
    attention = {"alibi": AlibiSpec(num_heads=heads), "bias": True, "o_bias": True}
    mlp = GatedMLP(size=config.integer("intermediate_size"), activation=read_activation(config), down_bias=True)
    return normed_sums(config, [mlp], [pooler(config)], "classifier", attention=attention, kind="mean")


def version_3(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults(_DEFAULTS_3).aliased(rope_theta="rotary_emb_base")
    refuse_adapters(config)
    config.refuse_unless("position_embedding_type", ("rotary",))
    size = config.integer("hidden_size")
    attention = {"rope": encoder_rope(config, _THETA_3), "bias": True, "o_bias": True}
    mlp = MLP(size=config.integer("intermediate_size"), activation=read_activation(config), bias=True)
    head = HeadSpec(name="classifier.dense", gguf="cls", size=size, activation="tanh")
    return normed_sums(config, [mlp], [head], "classifier.out_proj", attention=attention, kind="mean")
