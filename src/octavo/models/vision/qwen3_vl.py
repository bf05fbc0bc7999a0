"""Qwen3-VL: as Qwen2-VL, with learned positions that are mixed, and rows that the first layers of the text add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision import qwen2_vl

HF: Final = (
    *qwen2_vl.HF,
    (rf"^{ROOM}\.pos_embed\.", f"{ROOM}.positions."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)linear_fc1\.", r"\1up_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)linear_fc2\.", r"\1down_proj."),
    (rf"^{ROOM}\.merger\.norm\.", f"{ROOM}.post_norm."),
    (rf"^{ROOM}\.merger\.", f"{ROOM}.projector."),
    (rf"^{ROOM}\.deepstack_merger_list\.", f"{ROOM}.taps."),
    (rf"^({ROOM}\..*\.)linear_fc1\.", r"\1up."),
    (rf"^({ROOM}\..*\.)linear_fc2\.", r"\1down."),
)
#: Released files have them as [in, out], unlike those that were saved later.
EXPERTS: Final = r".*\.mlp\.experts\.(?:gate_up|down)_proj"
_DEFAULTS: Final[Mapping[str, Any]] = {
    "depth": 27, "hidden_size": 1152, "hidden_act": "gelu_pytorch_tanh", "intermediate_size": 4304, "num_heads": 16,
    "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}  # fmt: skip
_SECTIONS: Final = [24, 20, 20]
_NORM: Final = NormSpec(eps=1e-6, kind="layer", bias=True)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(dict(_DEFAULTS))
    mlp = MLP(size=vision.integer("intermediate_size"), activation=read_activation(vision), bias=True)
    made = qwen2_vl.any_size(vision, vision.integer("hidden_size"), _NORM, mlp)
    taps = vision.get("deepstack_visual_indexes")
    if not isinstance(taps, list) or not all(type(each) is int and 0 <= each < len(made.layers) - 1 for each in taps):
        raise vision.fail("deepstack_visual_indexes", "is not a list of numbers of layers before the last")
    if sorted(set(taps)) != taps or len(taps) > len(text.layers):
        raise vision.fail("deepstack_visual_indexes", "is not in rising order, or longer than the text part has layers")
    positions = vision.integer("num_position_embeddings")
    return replace(
        made,
        patch_bias=True,
        num_positions=positions,
        is_interpolated=True,
        taps=tuple(taps),
        tap_projector=ProjectorSpec(norm=_NORM, inner_size=made.projector.inner_size),
    ), ()


def text(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    """The text part with the sections of its rotation, in turn."""
    spec = qwen2_vl.text(config, spec, _SECTIONS)
    layers = []
    for layer in spec.layers:
        assert isinstance(layer, Sequential) and isinstance(layer.attention, Attention) and layer.attention.rope
        rope = replace(layer.attention.rope, takes_turns=True)
        layers.append(replace(layer, attention=replace(layer.attention, rope=rope)))
    return replace(spec, layers=tuple(layers))
