"""What the command line says in place of a model's configuration: other values, another rope, no windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from octavo.base.config import ModelConfig
from octavo.base.config.options import json_object
from octavo.base.errors import InvalidConfig
from octavo.models.blocks import Attention
from octavo.models.seeing import text_part
from octavo.models.spec import ModelSpec


def overridden(values: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """The checkpoint's configuration with `hf_overrides`, `rope_scaling` and `rope_theta` in place of what it says.

    A key of `hf_overrides` is replaced as a whole. Of a model that also sees, all is about the text part. Raises
    InvalidConfig for JSON that is none, and for a rope of models that have several.
    """
    if text_part(values) is not None and isinstance(values.get("text_config"), dict):  # else both parts are in one
        return {**values, "text_config": overridden(values["text_config"], model)}
    given: dict[str, Any] = {}
    if model.hf_overrides is not None:
        given |= json_object(model.hf_overrides, "--hf-overrides")
    if model.rope_scaling is not None:
        given["rope_scaling"] = json_object(model.rope_scaling, "--rope-scaling")
    if model.rope_theta is not None:
        given["rope_theta"] = model.rope_theta
    if "rope_parameters" not in given and ("rope_scaling" in given or "rope_theta" in given):
        values = _older_rope(values)
    return {**values, **given} if given else values


def _older_rope(values: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its rope in the older form: `rope_theta` and `rope_scaling`, each to be replaced alone."""
    rope = values.get("rope_parameters")
    if not isinstance(rope, dict):
        return values
    if any(isinstance(each, dict) for each in rope.values()):
        raise InvalidConfig(
            "--rope-scaling and --rope-theta do not say which of the model's ropes they mean; "
            "write all of them into --hf-overrides as rope_parameters"
        )
    rest = {key: value for key, value in values.items() if key != "rope_parameters"}
    moved = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    scaling = {key: value for key, value in rope.items() if key not in moved}
    return {**rest, "rope_scaling": scaling or None, **moved}


def without_windows(spec: ModelSpec) -> ModelSpec:
    """The model whose attentions see all keys, served as far as its narrowest window reaches, where that is all."""
    windows = [each.window for each in _attentions(spec) if each.window]
    if not windows:
        return spec
    layers = tuple(
        replace(layer, attention=replace(layer.attention, window=0))  # type: ignore[attr-defined, type-var]
        if isinstance(getattr(layer, "attention", None), Attention)
        else layer
        for layer in spec.layers
    )
    return replace(spec, layers=layers, max_position_embeddings=min(spec.max_position_embeddings, *windows))


def _attentions(spec: ModelSpec) -> list[Attention]:
    found = [getattr(layer, "attention", None) for layer in spec.layers]
    return [each for each in found if isinstance(each, Attention)]
