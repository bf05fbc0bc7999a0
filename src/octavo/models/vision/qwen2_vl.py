"""Qwen2-VL and 2.5: pictures of any size, patches turned by line and column, positions of three parts in the text.

In 2.5 most layers of the tower see windows of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, GatedMLP, Sandwich, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_LAYERS, MAX_SIZE, ConfigReader
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, RopeSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import read_heads

HF: Final = (
    (r"^(model\.)?visual\.", f"{ROOM}."),
    (rf"^{ROOM}\.patch_embed\.proj\.", f"{ROOM}.patches."),
    (rf"^{ROOM}\.blocks\.", f"{ROOM}.layers."),
    (rf"^({ROOM}\.layers\.\d+\.)norm1\.", r"\1input_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)norm2\.", r"\1post_attention_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)attn\.qkv\.", r"\1self_attn.qkv."),
    (rf"^({ROOM}\.layers\.\d+\.)attn\.proj\.", r"\1self_attn.o_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc1\.", r"\1up_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc2\.", r"\1down_proj."),
    (rf"^{ROOM}\.merger\.ln_q\.", f"{ROOM}.post_norm."),
    (rf"^{ROOM}\.merger\.mlp\.0\.", f"{ROOM}.projector.up."),
    (rf"^{ROOM}\.merger\.mlp\.2\.", f"{ROOM}.projector.down."),
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "depth": 32, "embed_dim": 1280, "hidden_act": "quick_gelu", "mlp_ratio": 4, "num_heads": 16, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_DEFAULTS_2_5: Final[Mapping[str, Any]] = {
    "depth": 32, "hidden_size": 3584, "hidden_act": "silu", "intermediate_size": 3420, "num_heads": 16,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
_SECTIONS: Final = [16, 24, 24]
_NORM: Final = NormSpec(eps=1e-6, kind="layer", bias=True)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(dict(_DEFAULTS))
    width = vision.integer("embed_dim")
    size = width * vision.number("mlp_ratio")
    if size > MAX_SIZE:
        raise vision.fail("mlp_ratio", f"makes more than {MAX_SIZE} columns")
    mlp = MLP(size=int(size), activation=read_activation(vision), bias=True)
    return any_size(vision, width, _NORM, mlp), ()


def tower_2_5(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(dict(_DEFAULTS_2_5))
    mlp = GatedMLP(size=vision.integer("intermediate_size"), activation=read_activation(vision), bias=True)
    made = any_size(vision, vision.integer("hidden_size"), NormSpec(eps=1e-6), mlp)
    whole = vision.get("fullatt_block_indexes")
    if not isinstance(whole, list) or not all(type(each) is int for each in whole):
        raise vision.fail("fullatt_block_indexes", "is not a list of numbers of layers")
    return replace(made, windowed=frozenset(range(len(made.layers))) - frozenset(whole)), ()


def text_config(config: dict[str, Any]) -> Any:
    """Older files have both parts in one."""
    if (found := config.get("text_config")) is not None:
        return found
    own = {key: value for key, value in config.items() if key != "vision_config"}
    return {**own, "model_type": "qwen2_vl_text"}


def any_size(
    vision: ConfigReader, width: int, norm: NormSpec, mlp: MLP | GatedMLP, *, bias: bool = True, o_bias: bool = True
) -> TowerSpec:
    """A tower of pictures of any size, whose patches are turned by line and column."""
    vision.refuse_unless("in_channels", (3,))
    heads = read_heads(vision, width, "num_heads", parts=4)
    theta = vision.section("rope_parameters").number("rope_theta", 10_000.0)
    rope = RopeSpec(theta=theta, sections=(heads.head_dim // 4,) * 2, is_axial=True)
    attention = Attention(heads=heads, scale=heads.head_dim**-0.5, rope=rope, bias=bias, o_bias=o_bias, causal=False)
    patch, frames = vision.integer("patch_size"), vision.integer("temporal_patch_size")
    merge = vision.integer("spatial_merge_size") ** 2
    return TowerSpec(
        patch_values=3 * frames * patch * patch,
        frames=frames,
        hidden_size=width,
        num_positions=0,
        layers=(Sequential(norm=norm, attention=attention, mlp=mlp),) * vision.integer("depth", high=MAX_LAYERS),
        patch_bias=False,
        post_norm=norm,
        merge=merge,
        projector=ProjectorSpec(inner_size=merge * width),
        kinds=("image", "video") if frames > 1 else ("image",),
    )


def text(config: ConfigReader, spec: ModelSpec, usual: list[int] = _SECTIONS) -> ModelSpec:
    """The text part with the sections of its rotation. `config`: the text part's."""
    key = "rope_scaling" if config.get("rope_parameters") is None else "rope_parameters"
    found = config.section(key).get("mrope_section")
    sections = usual if found is None else found
    layers = []
    for layer in spec.layers:
        assert isinstance(layer, Sandwich | Sequential) and isinstance(layer.attention, Attention)
        rope, dim = layer.attention.rope, layer.attention.heads.head_dim
        pairs = dim // 2 if rope is None else (rope.rotary_dim or dim) // 2
        if rope is None or not isinstance(sections, list) or len(sections) != 3 or sum(sections) != pairs:
            raise config.section(key).fail("mrope_section", f"does not divide the {pairs} pairs of a head in three")
        turned = replace(rope, sections=tuple(sections))
        layers.append(replace(layer, attention=replace(layer.attention, rope=turned)))
    return replace(spec, layers=tuple(layers))
