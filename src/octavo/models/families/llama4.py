"""Llama 4, text: experts that see x times their weight, attention in chunks but for layers without positions."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import Attention, Block, GatedMLP, Sequential
from octavo.models.common import Common, read_common, read_experts, with_local_experts
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.expert_blocks import WithShared, shared_mlp
from octavo.models.layout import STACKED_EXPERTS, Layout
from octavo.models.spec import ModelSpec, NormSpec, QScaleSpec
from octavo.ops.routing import Routing

HF: Final = Layout(
    renames=((r"\.feed_forward\.", ".mlp."), (r"\.mlp\.router\.", ".mlp.gate.")),
    transposed=r".*\.experts\.(gate_up|down)_proj",
    splits=STACKED_EXPERTS,
    interleaved=True,
)  # fmt: skip
_DEFAULTS: Final[dict[str, Any]] = {
    "num_experts": 16, "num_experts_per_tok": 1, "hidden_act": "silu", "head_dim": 128, "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0, "intermediate_size_mlp": 16_384,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    config = with_local_experts(config).with_defaults(_DEFAULTS)
    common = read_common(config, has_experts=True)
    routing = Routing(kind="sigmoid", renormalize=False)
    experts = WithShared(
        experts=read_experts(config, common, routing=routing, scales_input=True),
        shared=shared_mlp(common.intermediate_size, common.activation, "mlp.shared_expert"),
    )
    dense = GatedMLP(size=config.integer("intermediate_size_mlp"), activation=common.activation)
    sparse, rotated = _sparse_layers(config, common.num_layers), _rotated_layers(config, common.num_layers)
    attentions = {is_rotated: _attention(config, common, is_rotated) for is_rotated in set(rotated)}

    def layer(number: int) -> Sequential:
        mlp: Block = experts if number in sparse else dense
        return Sequential(norm=common.norm, attention=attentions[rotated[number]], mlp=mlp)

    return common.decoder([layer(number) for number in range(common.num_layers)])


def _attention(config: ConfigReader, common: Common, is_rotated: bool) -> Attention:
    bias = config.flag("attention_bias", False)
    options: dict[str, Any] = {
        "heads": common.heads, "scale": common.heads.head_dim**-0.5, "bias": bias, "o_bias": bias,
    }  # fmt: skip
    if not is_rotated:
        # Older files have a number here.
        if config.get("attn_temperature_tuning") not in (False, 0):
            options["q_scale"] = QScaleSpec(
                beta=config.number("attn_scale", 0.1), offset=1,
                original_max_position_embeddings=config.integer("floor_scale", 8192, MAX_POSITIONS),
            )  # fmt: skip
        return Attention(**options)
    if config.flag("use_qk_norm", True):
        options |= {"qk_norm": NormSpec(eps=common.norm.eps, has_weight=False), "norms_rotated": True}
    chunk = 0  # Null means whole contexts; only where the key is absent does the default hold.
    if not config.has("attention_chunk_size") or config.get("attention_chunk_size") is not None:
        chunk = config.integer("attention_chunk_size", 8192, MAX_POSITIONS)
    return Attention(rope=common.rope, window=chunk, chunked=chunk > 0, **options)


def _sparse_layers(config: ConfigReader, num_layers: int) -> set[int]:
    given = config.get("moe_layers")
    if given is None:
        step = config.integer("interleave_moe_layer_step", 1, MAX_LAYERS)
        return set(range(step - 1, num_layers, step))
    if not isinstance(given, list) or not all(type(number) is int for number in given):
        raise config.fail("moe_layers", "is not a list of layers")
    return set(given)


def _rotated_layers(config: ConfigReader, num_layers: int) -> list[bool]:
    """Those with positions: by default three of four."""
    given = config.get("no_rope_layers")
    if not given:
        step = config.integer("no_rope_layer_interval", 4, MAX_LAYERS)
        given = [int((number + 1) % step != 0) for number in range(num_layers)]
    if not isinstance(given, list) or len(given) < num_layers or not all(kind in (0, 1) for kind in given):
        raise config.fail("no_rope_layers", f"is not a list of zeros and ones for {num_layers} layers")
    kinds = ["chunked_attention" if kind else "full_attention" for kind in given[:num_layers]]
    config.refuse_unless("layer_types", (kinds,))
    return [bool(kind) for kind in given[:num_layers]]
