"""Persimmon: layer norms and biases everywhere, also of the heads of q and k; a plain MLP of squared relu."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import QKV_BY_HEAD, Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "relu2", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "max_position_embeddings": 16384,
}  # fmt: skip
HF: Final = Layout(
    renames=(
        (r"\.query_key_value\.", ".qkv."), (r"\.self_attn\.dense\.", ".self_attn.o_proj."),
        (r"\.([qk])_layernorm\.", r".\1_norm."), (r"\.dense_h_to_4h\.", ".up_proj."),
        (r"\.dense_4h_to_h\.", ".down_proj."), (r"\.final_layernorm\.", ".norm."),
    ),
    splits=(QKV_BY_HEAD,),
)  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(rms_norm_eps="layer_norm_eps").with_defaults(_DEFAULTS)
    common = read_common(config, rotates_in_part=True).with_norm(kind="layer", bias=True)
    layer = llama_layer(
        common, bias=True, o_bias=True, qk_norm=common.norm if config.flag("qk_layernorm", True) else None,
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=True),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers)
