"""Hunyuan, dense: Llama with norms of the heads behind the rotation, whose base has been stretched once and for all."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.layout import Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "rms_norm_eps": 1e-5}
HF: Final = Layout(renames=((r"\.query_layernorm\.", ".q_norm."), (r"\.key_layernorm\.", ".k_norm.")))


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(head_dim="attention_head_dim").with_defaults(_DEFAULTS)
    config.refuse_unless("use_qk_norm", (True,))
    config.refuse_unless("norm_type", ("rms",))
    for key in ("use_cla", "mlp_bias"):
        config.refuse_unless(key, (False,))
    common, bias = read_common(_stretched(config)), config.flag("attention_bias", False)
    layer = llama_layer(common, qk_norm=common.norm, norms_rotated=True, bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers)


def _stretched(config: ConfigReader) -> ConfigReader:
    """The files call the rope dynamic, and give an `alpha` by which its base is to grow, whatever the length."""
    key = "rope_scaling" if config.get("rope_parameters") is None else "rope_parameters"
    section = config.section(key)
    kind = section.get("rope_type" if section.get("rope_type") is not None else "type")
    if kind != "dynamic" or section.get("alpha") is None:
        return config
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    dim = config.integer("head_dim", max(4, hidden // num_heads))
    theta = section.number("rope_theta", config.number("rope_theta", 10_000.0))
    theta *= section.number("alpha") ** (dim / max(dim - 2, 1))
    return config.without("rope_scaling", "rope_parameters", "rope_theta").merged({"rope_theta": theta})
