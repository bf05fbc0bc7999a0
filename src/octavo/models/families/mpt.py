"""MPT: ALiBi with a bound of its own, or learned positions; layer norms, no biases, a plain MLP."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import QKV, Layout
from octavo.models.spec import AlibiSpec, ModelSpec

_NAMES: Final = {
    "hidden_size": "d_model", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_seq_len", "rms_norm_eps": "layer_norm_epsilon",
}  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
_KV_HEADS: Final = {"multihead_attention": None, "multiquery_attention": 1}
HF: Final = Layout(
    renames=(
        (r"^transformer\.", "model."), (r"\.wte\.", ".embed_tokens."), (r"\.wpe\.", ".embed_positions."),
        (r"\.norm_f\.", ".norm."), (r"\.blocks\.", ".layers."), (r"\.norm_1\.", ".input_layernorm."),
        (r"\.norm_2\.", ".post_attention_layernorm."), (r"\.attn\.", ".self_attn."), (r"\.ffn\.", ".mlp."),
        (r"\.Wqkv\.", ".qkv."), (r"\.out_proj\.", ".o_proj."), (r"\.([qk])_ln\.", r".\1_norm."),
    ),
    splits=(QKV,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES).with_defaults(_DEFAULTS)
    # Of GGUF these stand beside the others (`gguf_config`).
    attn = config.section("attn_config").with_defaults({key: config.get(key) for key in ("alibi_bias_max", "clip_qkv")})
    for each, key in ((attn, "prefix_lm"), (attn, "rope"), (config, "logit_scale")):
        each.refuse_unless(key, (False,))
    attn.refuse_unless("sliding_window_size", (-1,))
    config.refuse_unless("norm_type", ("layernorm", "low_precision_layernorm"))
    config.section("ffn_config").refuse_unless("ffn_type", ("mptmlp",))
    attn.refuse_unless("attn_type", (*_KV_HEADS, "grouped_query_attention"))
    kv_heads = _KV_HEADS.get(str(attn.get("attn_type")), attn.get("kv_n_heads"))
    hidden = config.integer("hidden_size")
    sizes = {"num_key_value_heads": kv_heads, "intermediate_size": config.integer("expansion_ratio", 4) * hidden}
    common = read_common(config.with_defaults(sizes))
    bias = config.flag("attention_bias", not config.flag("no_bias", True))
    is_alibi = attn.flag("alibi", attn.get("alibi_bias_max") != 0)
    common = common.with_norm(kind="layer", bias=bias)
    alibi = None
    if is_alibi:
        alibi = AlibiSpec(num_heads=common.heads.num_heads, max_bias=attn.number("alibi_bias_max", 8.0))
    layer = llama_layer(
        common, scale=attn.number("softmax_scale", common.heads.head_dim**-0.5), bias=bias, o_bias=bias, rope=None,
        alibi=alibi, qk_norm=common.norm if attn.flag("qk_ln", False) else None, qk_norm_of="row",
        clip=attn.number("clip_qkv") if attn.get("clip_qkv") else 0.0,
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=bias),
    )  # fmt: skip
    positions = not is_alibi and config.flag("learned_pos_emb", True)
    return common.decoder([layer] * common.num_layers, learned_positions=positions)
