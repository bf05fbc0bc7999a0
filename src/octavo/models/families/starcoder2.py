"""StarCoder 2: layer norms and biases everywhere, a plain MLP, and a window in all layers of the smaller models."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP
from octavo.models.common import read_common, read_window
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
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
    common, bias = read_common(config).with_norm(kind="layer", bias=True), config.flag("use_bias", True)
    mlp = MLP(size=common.intermediate_size, activation=common.activation, bias=bias)
    layer = llama_layer(common, mlp=mlp, window=read_window(config), bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers)
