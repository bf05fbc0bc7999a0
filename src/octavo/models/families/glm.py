"""ChatGLM 2 and 3, GLM-4-9B in either form, and GLM-4-0414: of each head half is rotated, pairs side by side.

GLM-4-0414 (`spec_0414`) has norms on both sides of its blocks.
"""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Sandwich, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import GATE_UP, GGUF_GATE_UP, GGUF_QKV, QKV, Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "silu", "partial_rotary_factor": 0.5, "attention_bias": True, "rms_norm_eps": 1.5625e-7,
    "max_position_embeddings": 131_072, "head_dim": 128,
}  # fmt: skip
_CHATGLM_NAMES: Final = {
    "num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size", "head_dim": "kv_channels",
    "num_key_value_heads": "multi_query_group_num", "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon", "attention_bias": "add_qkv_bias",
}  # fmt: skip
HF: Final = Layout(splits=(GATE_UP,), interleaved=True)
HF_0414: Final = Layout(
    renames=(
        (r"\.post_attention_layernorm\.", ".pre_feedforward_layernorm."),
        (r"\.post_self_attn_layernorm\.", ".post_attention_layernorm."),
        (r"\.post_mlp_layernorm\.", ".post_feedforward_layernorm."),
    ),
    splits=(GATE_UP,),
    interleaved=True,
)
CHATGLM: Final = Layout(
    ignored=(r"transformer\.rotary_pos_emb\.inv_freq",),
    renames=(
        (r"^transformer\.embedding\.word_embeddings\.", "model.embed_tokens."),
        (r"^transformer\.output_layer\.", "lm_head."), (r"^transformer\.encoder\.final_layernorm\.", "model.norm."),
        (r"^transformer\.encoder\.", "model."), (r"\.self_attention\.query_key_value\.", ".self_attn.qkv."),
        (r"\.self_attention\.dense\.", ".self_attn.o_proj."), (r"\.dense_h_to_4h\.", ".gate_up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
    ),
    splits=(GATE_UP, QKV),
    interleaved=True,
)  # fmt: skip
GGUF: Final = Layout(splits=(GGUF_QKV, GGUF_GATE_UP), interleaved=True)


def spec(config: ConfigReader) -> ModelSpec:
    return _spec(config.with_defaults(_DEFAULTS), Sequential)


def spec_0414(config: ConfigReader) -> ModelSpec:
    return _spec(config.with_defaults(_DEFAULTS), Sandwich)


def chatglm(config: ConfigReader) -> ModelSpec:
    """The configuration that came with the models' own code."""
    for key, only in (
        ("rmsnorm", True), ("post_layer_norm", True), ("apply_residual_connection_post_layernorm", False),
        ("add_bias_linear", False), ("multi_query_attention", True), ("pre_seq_len", 0), ("original_rope", True),
    ):  # fmt: skip
        config.refuse_unless(key, (only,))
    names = dict(_CHATGLM_NAMES)
    if config.get("padded_vocab_size") is not None:
        config, names["vocab_size"] = config.without("vocab_size"), "padded_vocab_size"
    theta = 10_000.0 * config.number("rope_ratio", 1.0)
    config = config.aliased(**names).with_defaults({"rope_theta": theta, "rms_norm_eps": 1e-5})
    return _spec(config.with_defaults(_DEFAULTS), Sequential)


def _spec(config: ConfigReader, block: type[Sequential] | type[Sandwich]) -> ModelSpec:
    common = read_common(config, rotates_in_part=True)
    layer = block(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5,
            bias=config.flag("attention_bias", True),
        ),
        mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
