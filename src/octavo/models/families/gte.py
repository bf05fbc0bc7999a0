"""GTE's own BERT: rotated heads and a gated MLP. Files of its authors call it `new`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import GatedMLP
from octavo.models.common import read_activation
from octavo.models.config_reader import ConfigReader
from octavo.models.families.bert import encoder_heads, encoder_rope, normed_sums, pooler
from octavo.models.layout import QKV, Layout, Split
from octavo.models.spec import ModelSpec, RopeSpec

HF: Final = Layout(
    ignored=(r"lm_head\..*",),
    renames=(
        (r"^(new|gte)\.", ""), (r"^embeddings\.word_embeddings\.", "model.embed_tokens."),
        (r"^embeddings\.token_type_embeddings\.", "model.token_types."),
        (r"^embeddings\.LayerNorm\.", "model.embed_norm."), (r"^(encoder\.layer|layers)\.", "model.layers."),
        (r"\.attention\.qkv_proj\.", ".self_attn.qkv."), (r"\.attention\.o_proj\.", ".self_attn.o_proj."),
        (r"\.attn_ln\.", ".input_layernorm."), (r"\.post_attention_layernorm\.", ".input_layernorm."),
        (r"\.(mlp_ln|post_mlp_layernorm)\.", ".post_attention_layernorm."),
    ),
    splits=(QKV, Split(r"(.*\.mlp\.)up_gate_proj\.(\w+)", (r"\1up_proj.\2", r"\1gate_proj.\2"))),
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "layer_norm_eps": 1e-12, "type_vocab_size": 1, "max_position_embeddings": 8192, "hidden_act": "gelu",
}  # fmt: skip
#: Where nothing is said.
_THETA: Final = 160_000.0
_OWN_THETA: Final = 10_000.0


def spec(config: ConfigReader) -> ModelSpec:
    """As transformers has it."""
    return _spec(config.with_defaults(_DEFAULTS), _THETA)


def new(config: ConfigReader) -> ModelSpec:
    """As its authors have it."""
    return _spec(config.with_defaults(_DEFAULTS), _OWN_THETA)


def _spec(config: ConfigReader, theta: float) -> ModelSpec:
    config.refuse_unless("position_embedding_type", ("rope",))
    config.refuse_unless("layer_norm_type", ("layer_norm",))
    config.refuse_unless("logn_attention_scale", (False,))
    config.refuse_unless("pack_qkv", (True,))
    mlp = GatedMLP(size=config.integer("intermediate_size"), activation=read_activation(config), down_bias=True)
    attention = {"rope": _rope(config, theta), "bias": True, "o_bias": True}
    return normed_sums(config, [mlp], [pooler(config)], "classifier", attention=attention)


def _rope(config: ConfigReader, theta: float) -> RopeSpec:
    scaling = config.section("rope_scaling")
    if scaling.get("type") != "ntk":
        return encoder_rope(config, theta)
    # Theta times the factor, and all frequencies a little less: the slowest is divided by the factor as a whole.
    scaling.refuse_unless("mixed_b", ())
    factor, rope = scaling.number("factor"), encoder_rope(config.without("rope_scaling"), theta)
    dim = encoder_heads(config).head_dim
    factors = (factor ** (2 / dim),) * (dim // 2)
    return replace(rope, kind="factors", theta=rope.theta * factor, factors=factors)
