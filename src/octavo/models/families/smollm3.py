"""SmolLM3: Llama, of which every fourth layer knows no positions."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.common import read_common, windows_of_types
from octavo.models.config_reader import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec

_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_act": "silu", "tie_word_embeddings": True, "rope_theta": 2_000_000.0, "max_position_embeddings": 32_768,
}  # fmt: skip


def spec(config: ConfigReader) -> ModelSpec:
    common = read_common(config.with_defaults(_DEFAULTS))
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    rotates = _rotates(config, common.num_layers)
    windows: tuple[int, ...] = (0,) * common.num_layers
    if config.flag("use_sliding_window", False) and config.get("sliding_window") is not None:
        window = config.integer("sliding_window", high=MAX_POSITIONS)
        of_types = windows_of_types(config, common.num_layers, window)
        windows = of_types or tuple(0 if has_rope else window for has_rope in rotates)
    layers = [
        llama_layer(
            common, rope=common.rope if has_rope else None, window=window, bias=bias, o_bias=bias, mlp_bias=mlp_bias
        )
        for has_rope, window in zip(rotates, windows, strict=True)
    ]
    return common.decoder(layers)


def _rotates(config: ConfigReader, num_layers: int) -> list[bool]:
    """Whether a layer has the rotation: despite its name, that is what 1 means in `no_rope_layers`."""
    given = config.get("no_rope_layers")
    if given is None:
        interval = config.integer("no_rope_layer_interval", 4, MAX_LAYERS)
        return [layer % interval != 0 for layer in range(1, num_layers + 1)]
    if not isinstance(given, list) or len(given) != num_layers or any(each not in (0, 1) for each in given):
        raise config.fail("no_rope_layers", f"is not a list of 0 and 1 for {num_layers} layers")
    return [bool(each) for each in given]
