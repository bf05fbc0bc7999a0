"""Hunyuan, dense and with experts: Llama with norms of the heads behind the rotation, whose base has been stretched
once and for all."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common, read_experts
from octavo.models.config_reader import ConfigReader, flat_rope
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.families.llama import llama_layer
from octavo.models.layout import STACKED_EXPERTS, Layout
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {"hidden_act": "silu", "rms_norm_eps": 1e-5}
_RENAMES: Final = ((r"\.query_layernorm\.", ".q_norm."), (r"\.key_layernorm\.", ".k_norm."))
HF: Final = Layout(renames=_RENAMES)
MOE_HF: Final = Layout(
    renames=(*_RENAMES, (r"\.mlp\.gate\.wg\.", ".mlp.gate."), (r"\.shared_mlp\.", ".shared_experts.")),
    splits=STACKED_EXPERTS,
)


def spec(config: ConfigReader) -> ModelSpec:
    config = config.aliased(head_dim="attention_head_dim").with_defaults(_DEFAULTS)
    config.refuse_unless("use_qk_norm", (True,))
    config.refuse_unless("norm_type", ("rms",))
    for key in ("use_cla", "mlp_bias"):
        config.refuse_unless(key, (False,))
    common, bias = read_common(_stretched(config)), config.flag("attention_bias", False)
    layer = llama_layer(common, qk_norm=common.norm, norms_rotated=True, bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers)


def moe(config: ConfigReader) -> ModelSpec:
    """With experts, and an MLP for every token."""
    given = {
        key: uniform for key in ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
        if (uniform := _uniform(config, key)) is not None
    }  # fmt: skip
    config = config.replaced(**given).aliased(head_dim="attention_head_dim", num_experts_per_tok="moe_topk")
    config = config.with_defaults({**_DEFAULTS, "moe_intermediate_size": config.get("intermediate_size")})
    for key, allowed in {
        "use_qk_norm": True, "use_mixed_mlp_moe": True, "moe_layer_num_skipped": 0, "use_cla": False, "mlp_bias": False,
    }.items():  # fmt: skip
        config.refuse_unless(key, (allowed,))
    common, bias = read_common(_stretched(config), has_experts=True), config.flag("attention_bias", False)
    experts = read_experts(config, common)
    shared = shared_mlp(config.integer("num_shared_expert", 1) * experts.size, common.activation)
    mlp = WithShared(experts=experts, shared=shared)
    layer = llama_layer(common, mlp=mlp, qk_norm=common.norm, norms_rotated=True, bias=bias, o_bias=bias)
    return common.decoder([layer] * common.num_layers)


def _uniform(config: ConfigReader, key: str) -> Any:
    """A number, which files give once or for each of the layers."""
    value = config.get(key)
    if not isinstance(value, list):
        return value
    if not value or any(each != value[0] for each in value):
        raise config.fail(key, "differs from layer to layer: not supported")
    return value[0]


def _stretched(config: ConfigReader) -> ConfigReader:
    """The files call the rope dynamic, and give an `alpha` by which its base is to grow, whatever the length."""
    rope = flat_rope(config)
    kind = rope.get("type" if rope.get("rope_type") is None else "rope_type")
    if kind != "dynamic" or rope.get("alpha") is None:
        return config
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    dim = config.integer("head_dim", max(4, hidden // num_heads))
    theta = rope.number("rope_theta") * rope.number("alpha") ** (dim / max(dim - 2, 1))
    return config.without("rope_scaling", "rope_parameters").replaced(rope_theta=theta)
