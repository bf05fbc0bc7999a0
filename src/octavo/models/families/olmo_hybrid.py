"""OLMo hybrid: OLMo 3's attention, without windows, in every fourth layer, and a gated delta net in the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.blocks import Attention, GatedMLP, Layer, PostNorm, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader, flat_rope
from octavo.models.families import gated_delta
from octavo.models.families.gated_delta import delta_kinds, read_delta
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

HF: Final = Layout(
    renames=(
        *gated_delta.HF.renames, (r"\.attention_layer_norm\.", ".input_layernorm."),
        (r"\.feedforward_layer_norm\.", ".post_attention_layernorm."), (r"(\.linear_attn\.)g_proj\.", r"\1gate_proj."),
        (r"(\.linear_attn\.)o_(proj|norm)\.", r"\1out_\2."), (r"(\.linear_attn\.)out_norm\.", r"\1norm."),
        (r"(\.linear_attn\.)([qkv])_conv1d\.", r"\1conv_\2."),
    ),
    splits=tuple(split for split in gated_delta.HF.splits if "conv1d" in split.pattern),
    transposed=r".*\.linear_attn\.conv_[qkv]\.weight",
)  # fmt: skip
#: Of the norm behind the rule, whatever that of the others is.
_EPS: Final = 1e-5


def spec(config: ConfigReader) -> ModelSpec:
    heads = config.integer("num_attention_heads")
    config = config.with_defaults({"hidden_act": "silu", "linear_conv_kernel_dim": 4})
    config = config.with_defaults({"linear_num_key_heads": heads, "linear_num_value_heads": heads})
    key_dim = int(0.75 * config.integer("hidden_size") / config.integer("linear_num_key_heads"))
    config = config.with_defaults({"linear_key_head_dim": key_dim})
    config = config.with_defaults({"linear_value_head_dim": 2 * config.integer("linear_key_head_dim")})
    common = read_common(config)
    is_rotated = flat_rope(config, 0.0).get("rope_theta") not in (None, 0.0)
    bias = config.flag("attention_bias", False)
    attention = Attention(
        heads=common.heads, rope=common.rope if is_rotated else None, scale=common.heads.head_dim**-0.5,
        qk_norm=common.norm, qk_norm_of="row", bias=bias, o_bias=bias,
    )  # fmt: skip
    beta_scale = 2.0 if config.flag("linear_allow_neg_eigval", True) else 1.0
    delta = read_delta(config, replace(common.norm, eps=_EPS), beta_scale)
    mlp = GatedMLP(size=common.intermediate_size, activation=common.activation)
    layers: dict[str, Layer] = {
        "full_attention": PostNorm(norm=common.norm, attention=attention, mlp=mlp),
        "linear_attention": Sequential(norm=common.norm, attention=delta, mlp=mlp),
    }
    return common.decoder(layers[kind] for kind in delta_kinds(config, common.num_layers))
