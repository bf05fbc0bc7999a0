"""InternLM 1, 2 and 3: Llama with biases; 2 holds q, k and v in one matrix, by head of k and v."""

from __future__ import annotations

from typing import Final

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families import llama
from octavo.models.layout import QKV_BY_HEAD, Layout
from octavo.models.spec import ModelSpec

HF_2: Final = Layout(
    renames=(
        (r"^output\.", "lm_head."), (r"\.tok_embeddings\.", ".embed_tokens."),
        (r"\.attention\.wo\.", ".self_attn.o_proj."), (r"\.attention\.wqkv\.", ".self_attn.qkv."),
        (r"\.attention_norm\.", ".input_layernorm."),
        (r"\.ffn_norm\.", ".post_attention_layernorm."), (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
        (r"\.feed_forward\.w2\.", ".mlp.down_proj."), (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    ),
    splits=(QKV_BY_HEAD,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    """InternLM 1."""
    # Its own dynamic scaling begins behind the positions that the configuration names, which are all that is served.
    rotary = config.section("rotary")
    rotary.refuse_unless("type", ("origin", "dynamic"))
    config = config.with_defaults({"rope_theta": rotary.number("base", 10_000.0)})
    return llama.spec(config.aliased(attention_bias="bias").with_defaults({"attention_bias": True}))


def spec_2(config: ConfigReader) -> ModelSpec:
    return llama.spec(config.aliased(attention_bias="bias").with_defaults({"hidden_act": "silu"}))


def spec_3(config: ConfigReader) -> ModelSpec:
    config = config.aliased(attention_bias="qkv_bias", mlp_bias="bias")
    common = read_common(config.with_defaults({"hidden_act": "silu"}))
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    layer = llama.llama_layer(common, bias=bias, o_bias=mlp_bias, mlp_bias=mlp_bias)
    return common.decoder([layer] * common.num_layers)
