"""LLaVA and LLaVA-NeXT: rows of one of the last layers of CLIP or SigLIP, behind a projector of two matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from octavo.models.common import read_activation
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import RENAMES, vit

HF: Final = (
    *RENAMES,
    (r"^(model\.)?multi_modal_projector\.linear_1\.", f"{ROOM}.projector.up."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", f"{ROOM}.projector.down."),
)
#: Of the tower that configurations without one mean.
CLIP_LARGE: Final = {
    "intermediate_size": 4096, "hidden_size": 1024, "patch_size": 14, "image_size": 336, "num_hidden_layers": 24,
    "num_attention_heads": 16,
}  # fmt: skip


HF_NEXT: Final = (*HF, (r"^(model\.)?image_newline$", f"{ROOM}.newline"))


def next_tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    """LLaVA-NeXT's, with a row for the ends of lines."""
    made, unused = tower(config, text)
    if made.keeps_class:
        raise config.fail(
            "vision_feature_select_strategy", "keeps a class token, which has no place in a grid of tiles"
        )
    return replace(made, has_newline=True), unused


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config")
    kind = vision.get("model_type")
    if kind is None:
        kind, vision = "clip_vision_model", vision.with_defaults(CLIP_LARGE)
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise vision.fail("model_type", "is a tower that is not implemented")
    used = _layers(config, vision.integer("num_hidden_layers", 12))
    projector = ProjectorSpec(
        inner_size=text.hidden_size,
        activation=read_activation(config, "projector_hidden_act", "gelu"),
        bias=config.flag("multimodal_projector_bias", True),
    )
    config.refuse_unless("vision_feature_select_strategy", ("default", "full"))
    is_full = config.get("vision_feature_select_strategy") == "full"
    if kind == "siglip_vision_model" and not is_full:
        raise config.fail("vision_feature_select_strategy", "drops a class token, and SigLIP has none")
    # Rows are those of a layer, also of the last, before the norm behind it.
    made, unused = vit(vision, str(kind), projector, num_layers=used[-1], has_post_norm=False, keeps_class=is_full)
    return replace(made, joined=used if len(used) > 1 else (), row_scale=text.given_scale), unused


def _layers(config: ConfigReader, total: int) -> tuple[int, ...]:
    """How many layers have changed the rows that are taken; several: they stand beside each other."""
    chosen = config.get("vision_feature_layer")
    numbers = [-2] if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    if not numbers or not all(type(each) is int and -total - 1 <= each <= total for each in numbers):
        raise config.fail("vision_feature_layer", f"is not the number of a layer, or a list of some, of {total}")
    used = tuple(each if each >= 0 else total + 1 + each for each in numbers)
    if len(used) > 1 and (sorted(set(used)) != list(used) or not used[0]):
        raise config.fail("vision_feature_layer", "is not in rising order, or has the rows before the first layer")
    return used
