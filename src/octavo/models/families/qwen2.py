"""Qwen2 and Qwen2.5: Llama with biases on q, k and v, and an optional window in the upper layers."""

from __future__ import annotations

from octavo.models.common import read_common, windows_of_types
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config)
    windows = layer_windows(config, common.num_layers)
    return common.decoder([llama_layer(common, window=window, bias=True) for window in windows])


def layer_windows(config: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """The window holds only if `use_sliding_window` is set, and then from layer `max_window_layers` upwards."""
    if not config.flag("use_sliding_window", False) or config.get("sliding_window") is None:
        return (0,) * num_layers
    window = config.integer("sliding_window", high=MAX_POSITIONS)
    windows = windows_of_types(config, num_layers, window)
    if windows is not None:
        return windows
    first = config.integer("max_window_layers", 28, MAX_LAYERS, low=0)
    return tuple(window if layer >= first else 0 for layer in range(num_layers))
