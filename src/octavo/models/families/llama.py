"""Llama 1 to 3.x, and what took its shape (SmolLM, Yi, many more)."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import Common, read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

#: Early files of Yi call the norms otherwise.
YI: Final = Layout(renames=((r"\.ln1\.", ".input_layernorm."), (r"\.ln2\.", ".post_attention_layernorm.")))


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config)
    bias = config.flag("attention_bias", False)
    layer = llama_layer(common, bias=bias, o_bias=bias, mlp_bias=config.flag("mlp_bias", False))
    return common.decoder([layer] * common.num_layers)


def llama_layer(common: Common, *, mlp: Block | None = None, mlp_bias: bool = False, **attention: Any) -> Sequential:
    """Llama's layer. `mlp`: in place of its own. `attention`: fields of `Attention` that are not as Llama has them."""
    options = {"heads": common.heads, "rope": common.rope, "scale": common.heads.head_dim**-0.5, **attention}
    return Sequential(
        norm=common.norm,
        attention=Attention(**options),
        mlp=mlp or GatedMLP(size=common.intermediate_size, activation=common.activation, bias=mlp_bias),
    )
