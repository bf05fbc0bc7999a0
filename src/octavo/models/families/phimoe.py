"""Phi-3.5-MoE: layer norms with biases, and two experts of which each is weighed beside those near to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.common import Common, read_common, read_experts, read_window, with_local_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec
from octavo.ops.routing import Routing

_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 16, "num_experts_per_tok": 2, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e6,
}  # fmt: skip
_MSCALES: Final = ("short_mscale", "long_mscale")


def spec(config: ConfigReader) -> ModelSpec:
    config, scale = without_mscales(with_local_experts(config).with_defaults(_DEFAULTS))
    common = with_mscale(read_common(config, has_experts=True), scale)
    common, bias = common.with_norm(kind="layer", bias=True), config.flag("attention_bias", False)
    # The noise of a configuration is training's; what it bounds here is which experts count as near.
    routing = Routing(kind="sparsemixer", renormalize=False, jitter=config.number("router_jitter_noise", 0.01))
    layer = llama_layer(
        common, mlp=read_experts(config, common, routing=routing), window=read_window(config), bias=bias, o_bias=bias
    )
    return common.decoder([layer] * common.num_layers, lm_head_bias=config.flag("lm_head_bias", False))


def without_mscales(config: ConfigReader) -> tuple[ConfigReader, float | None]:
    """Without what cosines and sines of a longrope are multiplied by, and that; None: as it is elsewhere."""
    key = "rope_scaling" if config.get("rope_parameters") is None else "rope_parameters"
    rope = config.section(key)
    scale = None if rope.get("long_mscale") is None else rope.number("long_mscale")
    rope.refuse_unless("short_mscale", (1.0 if scale is None else scale,))
    if config.get(key) is not None:
        plain = {name: value for name, value in config.get(key).items() if name not in _MSCALES}
        config = config.replaced(**{key: plain})
    return config, scale


def with_mscale(common: Common, scale: float | None) -> Common:
    return common if scale is None else replace(common, rope=replace(common.rope, attention_factor=scale))
