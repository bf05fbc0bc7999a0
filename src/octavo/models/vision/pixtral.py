"""Pixtral and Mistral 3: pictures of any size, patches turned by line and column, RMS norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import Attention, GatedMLP, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, ConfigReader
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, RopeSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.ops.operands import Heads

HF: Final = (
    (r"^(model\.)?vision_tower\.", f"{ROOM}."),
    (rf"^{ROOM}\.patch_conv\.", f"{ROOM}.patches."),
    (rf"^{ROOM}\.ln_pre\.", f"{ROOM}.pre_norm."),
    (rf"^{ROOM}\.transformer\.layers\.", f"{ROOM}.layers."),
    (rf"^({ROOM}\.layers\.\d+\.)attention_norm\.", r"\1input_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)ffn_norm\.", r"\1post_attention_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)attention\.", r"\1self_attn."),
    (rf"^({ROOM}\.layers\.\d+\.)feed_forward\.", r"\1mlp."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", f"{ROOM}.projector.up."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", f"{ROOM}.projector.down."),
    (r"^(model\.)?multi_modal_projector\.norm\.", f"{ROOM}.post_norm."),
    (r"^(model\.)?multi_modal_projector\.patch_merger\.merging_layer\.", f"{ROOM}.projector.merger."),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "patch_size": 16, "hidden_act": "gelu",
}  # fmt: skip
_NORM: Final = NormSpec(eps=1e-5)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    config.refuse_unless("vision_feature_layer", (-1,))
    vision = config.section("vision_config").with_defaults(_DEFAULTS)
    vision.refuse_unless("num_channels", (3,))
    width, count = vision.integer("hidden_size"), vision.integer("num_attention_heads")
    head_dim = width // count
    if width % count or head_dim % 4 or head_dim > MAX_HEAD_DIM:
        raise vision.fail(
            "num_attention_heads", f"does not divide the {width} columns into parts for lines and columns"
        )
    vision.refuse_unless("head_dim", (head_dim,))
    rotation = vision.section("rope_parameters")
    rope = RopeSpec(
        theta=rotation.number("rope_theta", vision.number("rope_theta", 10_000.0)),
        sections=(head_dim // 4,) * 2,
        is_axial=True,
        takes_turns=True,
    )
    heads = Heads(num_heads=count, num_kv_heads=count, head_dim=head_dim)
    layer = Sequential(
        norm=_NORM,
        attention=Attention(heads=heads, scale=head_dim**-0.5, rope=rope, causal=False),
        mlp=GatedMLP(size=vision.integer("intermediate_size"), activation=read_activation(vision)),
    )
    projector = ProjectorSpec(
        inner_size=text.hidden_size,
        activation=read_activation(config, "projector_hidden_act", "gelu"),
        bias=config.flag("multimodal_projector_bias", True),
    )
    return TowerSpec(
        patch_values=3 * vision.integer("patch_size") ** 2,
        hidden_size=width,
        num_positions=0,
        layers=(layer,) * vision.integer("num_hidden_layers", high=MAX_LAYERS),
        patch_bias=False,
        pre_norm=_NORM,
        projector=projector,
    ), ()


def merging_tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    """Mistral 3's: squares of patches become one row, by a matrix."""
    vision = config.section("vision_config")
    vision.with_defaults({"model_type": "pixtral"}).refuse_unless("model_type", ("pixtral",))
    # Where the key is left out, there are no biases, unlike in LLaVA.
    made, unused = tower(config.with_defaults({"multimodal_projector_bias": False}), text)
    eps = config.section("text_config").number("rms_norm_eps", 1e-6)
    return replace(
        made,
        post_norm=NormSpec(eps=eps),
        merge=config.integer("spatial_merge_size", 2) ** 2,
        merge_kind="columns",
        projector=replace(made.projector, merges_by_matrix=True),
    ), unused
