"""Nomic's BERT: rotated heads in place of learned positions, a gated MLP, no biases."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, NormedSum
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.layout import GGUF_QKV, QKV, Layout
from octavo.models.spec import ModelSpec, NormSpec, PoolingSpec, RopeSpec
from octavo.ops.operands import Heads

HF: Final = Layout(
    renames=(
        (r"^(bert|nomic_bert)\.", ""), (r"^embeddings\.word_embeddings\.", "model.embed_tokens."),
        (r"^embeddings\.token_type_embeddings\.", "model.token_types."), (r"^emb_ln\.", "model.embed_norm."),
        (r"^encoder\.layers\.", "model.layers."), (r"\.attn\.Wqkv\.", ".self_attn.qkv."),
        (r"\.attn\.out_proj\.", ".self_attn.o_proj."), (r"\.norm1\.", ".input_layernorm."),
        (r"\.norm2\.", ".post_attention_layernorm."), (r"\.mlp\.fc11\.", ".mlp.up_proj."),
        (r"\.mlp\.fc12\.", ".mlp.gate_proj."), (r"\.mlp\.fc2\.", ".mlp.down_proj."),
    ),
    splits=(QKV,),
)  # fmt: skip
GGUF: Final = Layout(splits=(GGUF_QKV,))
_DEFAULTS: Final[dict[str, Any]] = {
    "layer_norm_eps": 1e-12, "type_vocab_size": 2, "rotary_emb_base": 1000.0, "max_position_embeddings": 2048,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(
        hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head", intermediate_size="n_inner",
        max_position_embeddings="n_positions", layer_norm_eps="layer_norm_epsilon",
    ).with_defaults(_DEFAULTS)  # fmt: skip
    for key in (
        "prenorm", "parallel_block", "causal", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias", "use_rms_norm",
        "rotary_emb_interleaved", "rotary_emb_scale_base", "num_experts",
    ):  # fmt: skip
        config.refuse_unless(key, (False, 0))
    config.refuse_unless("rotary_emb_fraction", (1, 1.0))
    config.refuse_unless("activation_function", ("swiglu",))
    config.refuse_unless("rotary_scaling_factor", (1, 1.0))
    hidden, count = config.integer("hidden_size"), config.integer("num_attention_heads")
    if hidden % count:
        raise config.fail("num_attention_heads", f"does not divide hidden_size {hidden}")
    norm = NormSpec(eps=config.number("layer_norm_eps"), kind="layer", bias=True)
    heads = Heads(num_heads=count, num_kv_heads=count, head_dim=hidden // count)
    layer = NormedSum(
        attention=Attention(
            heads=heads,
            scale=heads.head_dim**-0.5,
            rope=RopeSpec(theta=config.number("rotary_emb_base")),
            causal=False,
        ),
        mlp=GatedMLP(size=config.integer("intermediate_size"), activation="silu"),
        norm=norm,
    )
    return ModelSpec(
        model_type=str(config.get("model_type")),
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        max_position_embeddings=config.integer("max_position_embeddings", high=MAX_POSITIONS),
        layers=(layer,) * config.integer("num_hidden_layers", high=MAX_LAYERS),
        norm=None,
        embedding_norm=norm,
        token_types=config.integer("type_vocab_size", low=0),
        bidirectional=True,
        pooling=PoolingSpec(kind="mean"),
    )
