"""GPT-NeoX and Pythia: attention and MLP side by side, of each head a quarter is rotated."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Parallel, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import QKV_BY_HEAD, Layout
from octavo.models.spec import ModelSpec

_NAMES: Final = {
    "rms_norm_eps": "layer_norm_eps", "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base",
}  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "max_position_embeddings": 2048,
}  # fmt: skip
HF: Final = Layout(
    ignored=(r".*\.attention\.bias", r".*\.attention\.masked_bias"),
    renames=(
        (r"^gpt_neox\.", "model."), (r"^embed_out\.", "lm_head."), (r"\.embed_in\.", ".embed_tokens."),
        (r"\.final_layer_norm\.", ".norm."), (r"\.attention\.query_key_value\.", ".self_attn.qkv."),
        (r"\.attention\.dense\.", ".self_attn.o_proj."), (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."),
    ),
    splits=(QKV_BY_HEAD,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(**_NAMES)
    common = read_common(config.with_defaults(_DEFAULTS), rotates_in_part=True).with_norm(kind="layer", bias=True)
    bias = config.flag("attention_bias", True)
    attention = Attention(
        heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, bias=bias, o_bias=bias
    )
    mlp = MLP(size=common.intermediate_size, activation=common.activation, bias=True)
    if config.flag("use_parallel_residual", True):
        layer: Parallel | Sequential = Parallel(attention=attention, mlp=mlp, norm=common.norm)
    else:
        layer = Sequential(attention=attention, mlp=mlp, norm=common.norm)
    return common.decoder([layer] * common.num_layers)
