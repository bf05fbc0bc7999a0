"""Mistral: Llama with a sliding window in all layers (of the first version; later ones set it to null)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.models.config_reader import MAX_POSITIONS, ConfigReader, base_spec
from octavo.models.spec import ArchSpec


def spec(config: dict[str, Any]) -> ArchSpec:
    reader = ConfigReader(config)
    reader.refuse_unless("layer_types", ())
    base = base_spec(reader)
    if reader.get("sliding_window") is None:
        return base
    window = reader.integer("sliding_window", high=MAX_POSITIONS)
    return replace(base, layer_windows=(window,) * base.num_layers)
