"""Llama 4: tiles that each are a picture of one size, patches turned by column and line beside learned positions;
squares of patches are one row, behind three matrices."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, RopeSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import read_heads, side

HF: Final = (
    (r"^(model\.)?vision_model\.", f"{ROOM}."),
    (rf"^{ROOM}\.class_embedding$", f"{ROOM}.class_token"),
    (rf"^{ROOM}\.positional_embedding_vlm$", f"{ROOM}.positions.weight"),
    (rf"^{ROOM}\.patch_embedding\.linear\.", f"{ROOM}.patches."),
    (rf"^{ROOM}\.layernorm_pre\.", f"{ROOM}.pre_norm."),
    (rf"^{ROOM}\.layernorm_post\.", f"{ROOM}.post_norm."),
    (rf"^{ROOM}\.model\.layers\.", f"{ROOM}.layers."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc1\.", r"\1up_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc2\.", r"\1down_proj."),
    (rf"^{ROOM}\.vision_adapter\.mlp\.fc1\.", f"{ROOM}.projector.up."),
    (rf"^{ROOM}\.vision_adapter\.mlp\.fc2\.", f"{ROOM}.projector.middle."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", f"{ROOM}.projector.down."),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 768, "hidden_act": "gelu", "num_hidden_layers": 34, "num_attention_heads": 16,
    "intermediate_size": 5632, "vision_output_dim": 7680, "image_size": 448, "patch_size": 14,
    "pixel_shuffle_ratio": 0.5, "projector_input_dim": 4096, "projector_output_dim": 4096,
}  # fmt: skip
_NORM: Final = NormSpec(eps=1e-5, kind="layer", bias=True)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(_DEFAULTS)
    vision.refuse_unless("num_channels", (3,))
    vision.refuse_unless("hidden_act", ("gelu",))
    vision.refuse_unless("multi_modal_projector_bias", (False,))
    vision.refuse_unless("vision_feature_layer", (-1,))
    vision.refuse_unless("vision_feature_select_strategy", ("default",))
    hidden = vision.integer("hidden_size")
    heads = read_heads(vision, hidden, parts=4)
    theta = vision.section("rope_parameters").number("rope_theta", vision.number("rope_theta", 10_000.0))
    # A position is its row of the table, and the place of the patch by column and line.
    rope = RopeSpec(theta=theta, sections=(0, heads.head_dim // 4, heads.head_dim // 4), is_axial=True)
    mlp = MLP(size=vision.integer("intermediate_size"), activation=read_activation(vision), bias=True)
    attention = Attention(heads=heads, scale=heads.head_dim**-0.5, rope=rope, bias=True, o_bias=True, causal=False)
    merge, inner = _merge(vision), vision.integer("projector_input_dim")
    # What the reference multiplies with each other has these sizes, or cannot be multiplied.
    vision.refuse_unless("intermediate_size", (hidden * merge,))
    for key in ("projector_output_dim", "vision_output_dim"):
        vision.refuse_unless(key, (inner,))
    patch, image = side(vision, "patch_size"), side(vision, "image_size")
    return TowerSpec(
        patch_values=3 * patch * patch,
        hidden_size=hidden,
        num_positions=(image // patch) ** 2 + 1,
        layers=(Sequential(norm=_NORM, attention=attention, mlp=mlp),)
        * vision.integer("num_hidden_layers", high=MAX_LAYERS),
        has_class_token=True,
        class_is_last=True,
        patch_bias=False,
        pre_norm=_NORM,
        post_norm=_NORM,
        merge=merge,
        projector=ProjectorSpec(inner_size=inner, middle_size=inner, bias=False),
    ), ()


def _merge(vision: ConfigReader) -> int:
    """So many patches are a row."""
    ratio = vision.number("pixel_shuffle_ratio")
    along = round(1 / ratio)
    if along < 1 or 1 / along != ratio:
        raise vision.fail("pixel_shuffle_ratio", "is not one part of a whole number of patches")
    if side(vision, "image_size") // side(vision, "patch_size") % along:
        raise vision.fail("pixel_shuffle_ratio", "does not divide the patches along a side")
    return along * along
