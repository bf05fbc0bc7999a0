"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and an optional window in the upper layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader, base_spec, read_layer_types
from octavo.models.spec import ArchSpec


def spec(config: dict[str, Any]) -> ArchSpec:
    reader = ConfigReader(config)
    base = base_spec(reader)
    return replace(base, attention_bias=True, layer_windows=layer_windows(reader, base.num_layers))


def layer_windows(reader: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """The window holds only if `use_sliding_window` is set, and then from layer `max_window_layers` upwards."""
    if not reader.flag("use_sliding_window", False) or reader.get("sliding_window") is None:
        return (0,) * num_layers
    window = reader.integer("sliding_window", high=MAX_POSITIONS)
    types = read_layer_types(reader, num_layers)
    if types is not None:
        return tuple(window if kind == "sliding" else 0 for kind in types)
    # 0 is allowed here: then all layers have the window.
    first = 0 if reader.get("max_window_layers") == 0 else reader.integer("max_window_layers", 28, MAX_LAYERS)
    return tuple(window if layer >= first else 0 for layer in range(num_layers))
