"""Idefics 3 and SmolVLM: SigLIP's tower; squares of patches are one row behind one matrix."""

from __future__ import annotations

from typing import Final

from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import RENAMES, vit

HF: Final = (
    *RENAMES,
    (r"^model\.connector\.modality_projection\.proj\.", f"{ROOM}.projector."),
    (r"^model\.text_model\.", "model."),
)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    scale = config.integer("scale_factor", 2, 64)
    projector = ProjectorSpec(bias=False)
    return vit(config.section("vision_config"), "idefics3_vision", projector, has_post_norm=True, merge=scale * scale)
