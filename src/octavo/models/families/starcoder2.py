"""StarCoder 2: layer norms and biases everywhere, a plain MLP, and a window in all layers of the smaller models."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_common, read_window
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}  # fmt: skip
HF: Final = Layout(renames=((r"\.mlp\.c_fc\.", ".mlp.up_proj."), (r"\.mlp\.c_proj\.", ".mlp.down_proj.")))


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(rms_norm_eps="norm_epsilon").with_defaults(_DEFAULTS)
    config.refuse_unless("mlp_type", ("default",))
    config.refuse_unless("norm_type", ("layer_norm",))
    common = read_common(config)
    norm, bias = replace(common.norm, kind="layer", bias=True), config.flag("use_bias", True)
    window = read_window(config)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, window=window, bias=bias,
            o_bias=bias,
        ),
        mlp=MLP(size=common.intermediate_size, activation=common.activation, bias=bias),
    )  # fmt: skip
    return common.decoder([layer] * common.num_layers, norm=norm)
