"""BLIP-2: a vision transformer, of whose rows a few learned queries read what the language model gets (Q-Former)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Layer, NormedSum
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.encoder import CrossAttention, Crossed
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, QueriesSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import RENAMES, read_heads, side, vit

_LAYER: Final = rf"^({ROOM}\.queries\.layers\.\d+\.)"
HF: Final = (
    *RENAMES,
    (rf"^{ROOM}\.embeddings\.position_embedding$", f"{ROOM}.positions.weight"),
    (rf"^({ROOM}\.layers\.\d+\.self_attn\.)projection\.", r"\1o_proj."),
    (r"^query_tokens$", f"{ROOM}.queries.table.weight"),
    (r"^language_projection\.", f"{ROOM}.projector."),
    (r"^qformer\.layernorm\.", f"{ROOM}.queries.norm."),
    (r"^qformer\.encoder\.layer\.", f"{ROOM}.queries.layers."),
    (_LAYER + r"attention\.attention\.(query|key|value)\.", r"\1self_attn.\2."),
    (_LAYER + r"attention\.output\.dense\.", r"\1self_attn.o_proj."),
    (_LAYER + r"attention\.output\.LayerNorm\.", r"\1input_layernorm."),
    (_LAYER + r"crossattention\.attention\.(query|key|value)\.", r"\1encoder_attn.\2."),
    (_LAYER + r"crossattention\.output\.dense\.", r"\1encoder_attn.o_proj."),
    (_LAYER + r"crossattention\.output\.LayerNorm\.", r"\1encoder_attn_layer_norm."),
    (_LAYER + r"(\w+_attn\.[qkv])(uery|ey|alue)\.", r"\1\2_proj."),
    (_LAYER + r"intermediate_query\.dense\.", r"\1mlp.up_proj."),
    (_LAYER + r"output_query\.dense\.", r"\1mlp.down_proj."),
    (_LAYER + r"output_query\.LayerNorm\.", r"\1post_attention_layernorm."),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "cross_attention_frequency": 2,
}  # fmt: skip


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults({"image_size": 224, "patch_size": 14})
    vision = vision.replaced(**{key: side(vision, key) for key in ("image_size", "patch_size")})
    made, unused = vit(vision, "blip_2_vision_model", ProjectorSpec(), has_post_norm=True, keeps_class=True)
    return replace(made, queries=_queries(config)), unused


def _queries(config: ConfigReader) -> QueriesSpec:
    number = config.integer("num_query_tokens", 32, 4096)
    config = config.section("qformer_config").with_defaults(_DEFAULTS)
    config.refuse_unless("use_qformer_text_input", (False,))
    hidden = config.integer("hidden_size")
    heads = read_heads(config, hidden)
    norm = NormSpec(eps=config.number("layer_norm_eps"), kind="layer", bias=True)
    parts: dict[str, Any] = {
        "attention": Attention(heads=heads, scale=heads.head_dim**-0.5, bias=True, o_bias=True, causal=False),
        "mlp": MLP(size=config.integer("intermediate_size"), activation=read_activation(config), bias=True),
        "norm": norm,
    }
    cross = CrossAttention(heads=heads, scale=heads.head_dim**-0.5, bias=True, k_bias=True, o_bias=True)
    plain: Layer = NormedSum(**parts)
    crossed: Layer = Crossed(**parts, cross=cross, norms_sums=True)
    every = config.integer("cross_attention_frequency")
    layers = range(config.integer("num_hidden_layers", high=MAX_LAYERS))
    return QueriesSpec(
        number=number,
        hidden_size=hidden,
        norm=norm,
        layers=tuple(plain if layer % every else crossed for layer in layers),
    )
