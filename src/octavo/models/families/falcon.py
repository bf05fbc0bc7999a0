"""Falcon 7B, 40B, 180B and 11B, and Falcon-RW: layer norms, a plain MLP; side by side or, in RW, one after the other.

7B and 11B have one norm for both blocks; 40B and 180B have two. RW tells positions by ALiBi.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Parallel, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families import bloom
from octavo.models.spec import AlibiSpec, ModelSpec

_NAMES: Final = {
    "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "intermediate_size": "ffn_hidden_size",
    "rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation", "hidden_size": "n_embed",
}  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu", "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
HF: Final = replace(
    bloom.HF,
    ignored=(r".*\.(self_attention|attention)\.(bias|masked_bias)",),
    renames=(
        *bloom.HF.renames, (r"\.ln_attn\.", ".input_layernorm."), (r"\.ln_mlp\.", ".post_attention_layernorm."),
    ),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES)
    is_old_40b = config.get("model_type") == "RefinedWeb"  # its first files do not say so otherwise
    is_new, is_parallel = config.flag("new_decoder_architecture", is_old_40b), config.flag("parallel_attn", True)
    if is_new and not is_parallel:
        raise config.fail("parallel_attn", "is not supported with new_decoder_architecture")
    config = config.with_defaults({**_DEFAULTS, "intermediate_size": 4 * config.integer("hidden_size")})
    common = read_common(config.with_defaults({"num_key_value_heads": _num_kv_heads(config, is_new)}))
    common, bias = common.with_norm(kind="layer", bias=True), config.flag("bias", False)
    scale = common.heads.head_dim**-0.5
    alibi = None
    if config.flag("alibi", False):
        alibi = AlibiSpec(num_heads=common.heads.num_heads, scale=scale)  # the bias is scaled as the scores are
    attention = Attention(
        heads=common.heads, rope=None if alibi else common.rope, alibi=alibi, scale=scale, bias=bias, o_bias=bias
    )
    mlp = MLP(size=common.intermediate_size, activation=common.activation, bias=bias)
    layer: Parallel | Sequential = Sequential(attention=attention, mlp=mlp, norm=common.norm)
    if is_parallel:
        shares_norm = not is_new or config.get("num_ln_in_parallel_attn") == 1
        gguf = ("attn_norm", "attn_norm") if shares_norm else ("attn_norm_2", "attn_norm")
        layer = Parallel(attention=attention, mlp=mlp, norm=common.norm, shares_norm=shares_norm, gguf_norms=gguf)
    return common.decoder([layer] * common.num_layers)


def _num_kv_heads(config: ConfigReader, is_new: bool) -> int | None:
    """None: as many as there are heads."""
    if not is_new and config.flag("multi_query", True):
        return 1
    key = "num_kv_heads" if config.get("num_kv_heads") is not None else "n_head_kv"
    return None if config.get(key) is None else config.integer(key)
