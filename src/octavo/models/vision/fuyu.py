"""Fuyu: no tower at all. One matrix makes rows of the language model of patches, whose values come by line, column and
channel."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, TowerSpec
from octavo.models.tower import ROOM

HF: Final = ((r"^(model\.)?vision_embed_tokens\.", f"{ROOM}.patches."),)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    config.refuse_unless("num_channels", (3,))
    patch = config.integer("patch_size", 30)
    return TowerSpec(
        patch_values=3 * patch * patch,
        channels_last=True,
        hidden_size=text.hidden_size,
        num_positions=0,
        layers=(),
        is_projected=False,
    ), ()


def text_config(config: dict[str, Any]) -> Any:
    """Files that have both parts in one are of Persimmon."""
    found = config.get("text_config")
    return {**config, "model_type": "persimmon"} if found is None else found
