"""Gemma 3: SigLIP's tower, squares of patches are one row, their mean; the rows of a picture see each other.

PaliGemma: its patches are rows; all of a prompt sees all of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import Attention, Sandwich, Sequential
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import RENAMES, vit

HF: Final = (
    *RENAMES,
    (r"^(model\.)?multi_modal_projector\.mm_input_projection_weight$", f"{ROOM}.projector.weight"),
    (r"^(model\.)?multi_modal_projector\.mm_soft_emb_norm\.", f"{ROOM}.projector.norm."),
)
PALIGEMMA_HF: Final = (*RENAMES, (r"^(model\.)?multi_modal_projector\.linear\.", f"{ROOM}.projector."))
TRANSPOSED: Final = rf"{ROOM}\.projector\.weight"


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config")
    vision.refuse_unless("model_type", ("siglip_vision_model",))
    side, kept = _sides(config, vision)
    norm = NormSpec(eps=vision.number("layer_norm_eps", 1e-6), offset=1.0)
    made, unused = vit(
        vision,
        "siglip_vision_model",
        ProjectorSpec(norm=norm, bias=False),
        has_post_norm=True,
        merge=(side // kept) ** 2,
    )
    return replace(made, merge_kind="mean", whole_spans=True), unused


def paligemma(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config")
    vision.refuse_unless("model_type", ("siglip_vision_model",))
    made, unused = vit(vision, "siglip_vision_model", ProjectorSpec(), has_post_norm=True)
    return replace(made, whole_prompts=True), unused


def paligemma_text_config(config: dict[str, Any]) -> Any:
    """That prompts see all of themselves is told by the tower."""
    found = config.get("text_config")
    return {**found, "use_bidirectional_attention": False} if isinstance(found, dict) else found


def _sides(config: ConfigReader, vision: ConfigReader) -> tuple[int, int]:
    """Patches along a side of a picture, and rows."""
    side = vision.integer("image_size", 224) // vision.integer("patch_size", 16)
    rows = config.integer("mm_tokens_per_image", 256)
    kept = int(rows**0.5)
    if kept * kept != rows or side % kept:
        raise config.fail("mm_tokens_per_image", f"is not a square that {side} x {side} patches can be divided into")
    return side, kept


def text(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """The text part, in which tokens see those of their picture or prompt that come behind them."""
    layers = []
    for layer in spec.layers:
        assert isinstance(layer, Sandwich | Sequential) and isinstance(layer.attention, Attention)
        layers.append(replace(layer, attention=replace(layer.attention, reads_key_ends=True)))
    return replace(spec, layers=tuple(layers))
