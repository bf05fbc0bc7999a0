"""Llama 3.2 with its vision, the tower: tiles of a picture, which all see each other, and layers with gates behind the
others."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.gates import Gated
from octavo.models.spec import ModelSpec, NormSpec, PicturesSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import read_heads, side

HF: Final = (
    (r"^(model\.)?vision_model\.", f"{ROOM}."),
    (rf"^{ROOM}\.class_embedding$", f"{ROOM}.class_token"),
    (rf"^{ROOM}\.patch_embedding\.", f"{ROOM}.patches."),
    (rf"^{ROOM}\.gated_positional_embedding\.embedding$", f"{ROOM}.positions"),
    (rf"^{ROOM}\.gated_positional_embedding\.gate$", f"{ROOM}.positions_gate"),
    (rf"^{ROOM}\.gated_positional_embedding\.tile_embedding\.", f"{ROOM}.tile_positions."),
    (rf"^{ROOM}\.pre_tile_positional_embedding\.gate$", f"{ROOM}.tile_starts_gate"),
    (rf"^{ROOM}\.pre_tile_positional_embedding\.embedding\.", f"{ROOM}.tile_starts."),
    (rf"^{ROOM}\.post_tile_positional_embedding\.gate$", f"{ROOM}.tile_marks_gate"),
    (rf"^{ROOM}\.post_tile_positional_embedding\.embedding\.", f"{ROOM}.tile_marks."),
    (rf"^{ROOM}\.layernorm_pre\.", f"{ROOM}.pre_norm."),
    (rf"^{ROOM}\.layernorm_post\.", f"{ROOM}.post_norm."),
    (rf"^{ROOM}\.transformer\.", f"{ROOM}."),
    (rf"^{ROOM}\.global_transformer\.layers\.", f"{ROOM}.global_layers."),
    (rf"^({ROOM}\.\w+\.\d+\.mlp\.)fc1\.", r"\1up_proj."),
    (rf"^({ROOM}\.\w+\.\d+\.mlp\.)fc2\.", r"\1down_proj."),
    (r"^(model\.)?multi_modal_projector\.", f"{ROOM}.projector."),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 1280, "hidden_act": "gelu", "num_hidden_layers": 32, "num_global_layers": 8, "attention_heads": 16,
    "intermediate_size": 5120, "image_size": 448, "patch_size": 14, "norm_eps": 1e-5, "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
}  # fmt: skip
_MAX_TILES: Final = 64
_OUTER: Final = NormSpec(eps=1e-5, kind="layer", bias=True)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[PicturesSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(_DEFAULTS).aliased(num_attention_heads="attention_heads")
    vision.refuse_unless("num_channels", (3,))
    hidden = vision.integer("hidden_size")
    heads = read_heads(vision, hidden)
    norm = NormSpec(eps=vision.number("norm_eps"), kind="layer", bias=True)
    attention = Attention(heads=heads, scale=heads.head_dim**-0.5, causal=False)
    mlp = MLP(size=vision.integer("intermediate_size"), activation=read_activation(vision), bias=True)
    gated = Sequential(
        norm=norm, attention=Gated(block=attention, name="gate_attn"), mlp=Gated(block=mlp, name="gate_ffn")
    )
    num_layers = vision.integer("num_hidden_layers", high=MAX_LAYERS)
    taken = _taken(vision, num_layers)
    vision.refuse_unless("vision_output_dim", ((1 + len(taken)) * hidden,))
    patch = side(vision, "patch_size")
    most = vision.integer("max_num_tiles", high=_MAX_TILES)
    return PicturesSpec(
        patch_values=3 * patch * patch,
        hidden_size=hidden,
        tile_rows=(side(vision, "image_size") // patch) ** 2 + 1,
        num_tiles=most,
        num_ratios=1 + _num_ratios(vision, most),
        layers=(Sequential(norm=norm, attention=attention, mlp=mlp),) * num_layers,
        taken=taken,
        global_layers=(gated,) * vision.integer("num_global_layers", high=MAX_LAYERS),
        outer_norm=_OUTER,
    ), ()


def _taken(vision: ConfigReader, num_layers: int) -> tuple[int, ...]:
    found = vision.get("intermediate_layers_indices")
    if not isinstance(found, list) or not all(type(each) is int and 0 <= each < num_layers for each in found):
        raise vision.fail("intermediate_layers_indices", f"is not a list of numbers of the {num_layers} layers")
    if sorted(set(found)) != found:
        raise vision.fail("intermediate_layers_indices", "is not in rising order")
    return tuple(found)


def _num_ratios(vision: ConfigReader, most: int) -> int:
    """The processor counts the grids of up to `most` tiles; a picture's grid is a row of the tables."""
    grids = [[high, wide] for high in range(1, most + 1) for wide in range(1, most // high + 1)]
    vision.refuse_unless("supported_aspect_ratios", (grids,))
    return len(grids)
