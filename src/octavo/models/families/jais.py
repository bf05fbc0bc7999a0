"""Jais: GPT-2 with ALiBi, a gated MLP, and factors for embeddings, scores and logits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families import gpt2
from octavo.models.families.llama import llama_layer
from octavo.models.spec import AlibiSpec, ModelSpec

_NAMES: Final = {**gpt2.NAMES, "embeddings_scale": "mup_embeddings_scale"}
_DEFAULTS: Final[dict[str, Any]] = {**gpt2.DEFAULTS, "hidden_act": "swiglu"}
HF: Final = replace(
    gpt2.HF,
    ignored=(*gpt2.HF.ignored, r".*relative_pe\.slopes"),
    renames=((r"\.c_fc2\.", ".gate_proj."), *gpt2.HF.renames),
    transposed=r".*\.(qkv|o_proj|gate_proj|up_proj|down_proj)\.weight",
)


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES).with_defaults(_DEFAULTS)
    gpt2.refuse_options(config)
    config.refuse_unless("position_embedding_type", ("alibi",))
    config.refuse_unless("alibi_scaling", ())
    config.refuse_unless("hidden_act", ("swiglu",))
    config = config.with_defaults({"intermediate_size": 4 * config.integer("hidden_size")})
    common = read_common(config.replaced(hidden_act="silu"))
    common, heads = common.with_norm(kind="layer", bias=True), common.heads
    layer = llama_layer(
        common, scale=heads.head_dim ** -(1.0 if config.flag("mup_scale_qk_dot_by_d", False) else 0.5), rope=None,
        alibi=AlibiSpec(num_heads=heads.num_heads, max_bias=config.number("alibi_bias_max", 8.0)), bias=True,
        o_bias=True, mlp_bias=True,
    )  # fmt: skip
    width_scale = config.number("mup_output_alpha", 1.0) * config.number("mup_width_scale", 1.0)
    return common.decoder(
        [layer] * common.num_layers,
        embedding_scale=config.number("embeddings_scale", 1.0),
        given_scale=config.number("embeddings_scale", 1.0),
        logit_scale=config.number("width_scale", width_scale),
    )
