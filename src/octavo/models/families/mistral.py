"""Mistral: Llama with a sliding window in all layers (of the first version; later ones set it to null). Ministral has
it in some, and Ministral 3 in none, with queries that grow with their position."""

from __future__ import annotations

from octavo.models.common import read_common, read_window, windows_of_types
from octavo.models.config_reader import MAX_POSITIONS, ConfigReader
from octavo.models.families.llama import llama_layer
from octavo.models.spec import ModelSpec, QScaleSpec


def spec(config: ConfigReader) -> ModelSpec:
    config.refuse_unless("layer_types", ())
    return _model(config)


def ministral(config: ConfigReader) -> ModelSpec:
    return _model(config.with_defaults({"hidden_act": "silu"}))


def ministral3(config: ConfigReader) -> ModelSpec:
    config = config.with_defaults({"hidden_act": "silu", "rms_norm_eps": 1e-5}).without("layer_types")
    section = config.section("rope_parameters")
    beta = section.get("llama_4_scaling_beta")
    if beta is None:
        return _model(config)
    scale = QScaleSpec(
        beta=section.number("llama_4_scaling_beta"),
        original_max_position_embeddings=section.integer("original_max_position_embeddings", high=MAX_POSITIONS),
    )
    rope = {key: value for key, value in config.get("rope_parameters").items() if key != "llama_4_scaling_beta"}
    return _model(config.replaced(rope_parameters=rope), scale)


def _model(config: ConfigReader, q_scale: QScaleSpec | None = None) -> ModelSpec:
    common = read_common(config)
    window = read_window(config)
    windows = windows_of_types(config, common.num_layers, window) or (window,) * common.num_layers
    return common.decoder([llama_layer(common, window=width, q_scale=q_scale) for width in windows])
