"""Hunyuan, dense and with experts: Llama with norms of the heads behind the rotation, whose base has been stretched
once and for all."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import Common, read_common, read_experts
from octavo.models.config_reader import ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
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
    for key in ("use_cla", "mlp_bias"):
        config.refuse_unless(key, (False,))
    common = read_common(_stretched(config))
    return _model(config, common, GatedMLP(size=common.intermediate_size, activation=common.activation))


def moe(config: ConfigReader) -> ModelSpec:
    """With experts, and an MLP of the same size for every token."""
    given = {
        key: uniform for key in ("num_experts", "moe_topk", "moe_intermediate_size", "num_shared_expert")
        if (uniform := _uniform(config, key)) is not None
    }  # fmt: skip
    config = config.without(*given).merged(given).aliased(head_dim="attention_head_dim", num_experts_per_tok="moe_topk")
    config = config.with_defaults({**_DEFAULTS, "moe_intermediate_size": config.get("intermediate_size")})
    config.refuse_unless("use_qk_norm", (True,))
    config.refuse_unless("use_mixed_mlp_moe", (True,))
    config.refuse_unless("moe_layer_num_skipped", (0,))
    for key in ("use_cla", "mlp_bias"):
        config.refuse_unless(key, (False,))
    common = read_common(_stretched(config), has_experts=True)
    experts = read_experts(config, common)
    shared = shared_mlp(config.integer("num_shared_expert", 1) * experts.size, common.activation)
    return _model(config, common, WithShared(experts=experts, shared=shared))


def _uniform(config: ConfigReader, key: str) -> Any:
    """A number, which files give once or for each of the layers."""
    value = config.get(key)
    if not isinstance(value, list):
        return value
    if not value or any(each != value[0] for each in value):
        raise config.fail(key, "differs from layer to layer: not supported")
    return value[0]


def _model(config: ConfigReader, common: Common, mlp: Block) -> ModelSpec:
    bias = config.flag("attention_bias", False)
    layer = Sequential(
        norm=common.norm,
        attention=Attention(
            heads=common.heads, rope=common.rope, scale=common.heads.head_dim**-0.5, qk_norm=common.norm,
            norms_rotated=True, bias=bias, o_bias=bias,
        ),
        mlp=mlp,
    )  # fmt: skip
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
