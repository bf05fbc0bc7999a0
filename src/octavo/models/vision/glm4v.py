"""GLM-4V: as Qwen2-VL, with learned positions that are mixed by cubics, and a merger of three steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from octavo.models.blocks import GatedMLP
from octavo.models.builder import Builder
from octavo.models.common import read_activation
from octavo.models.config_reader import ConfigReader
from octavo.models.params import Matrix
from octavo.models.spec import ModelSpec, NormSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision import qwen2_vl
from octavo.ops.operands import Buffer
from octavo.ops.operations import Act, Activation

HF: Final = (
    *qwen2_vl.HF,
    (rf"^{ROOM}\.embeddings\.position_embedding\.", f"{ROOM}.positions."),
    (rf"^{ROOM}\.post_conv_layernorm\.", f"{ROOM}.patch_norm."),
    (rf"^{ROOM}\.post_layernorm\.", f"{ROOM}.post_norm."),
    (rf"^{ROOM}\.downsample\.", f"{ROOM}.projector.merger."),
    (rf"^{ROOM}\.merger\.post_projection_norm\.", f"{ROOM}.projector.norm."),
    (rf"^{ROOM}\.merger\.proj\.", f"{ROOM}.projector.first."),
    (rf"^{ROOM}\.merger\.", f"{ROOM}.projector."),
)
_DEFAULTS: Final[Mapping[str, Any]] = {
    "depth": 24, "hidden_size": 1536, "hidden_act": "silu", "intermediate_size": 13696, "num_heads": 12,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 4096, "image_size": 336,
    "rms_norm_eps": 1e-5, "in_channels": 3,
}  # fmt: skip
_SECTIONS: Final = [8, 12, 12]


@dataclass(frozen=True, kw_only=True)
class Merger:
    """From squares of patches to rows: a matrix for all patches of one, another one with a norm, a gated MLP."""

    inner_size: int
    activation: Activation

    def emit(self, build: Builder, rows: Buffer, width: int, name: str) -> Buffer:
        merged, first = f"{name}.merger", f"{name}.first"
        rows = build.linear(rows, merged, [Matrix(name=merged, gguf="mm.patch_merger", rows=width, bias=True)], None)
        rows = build.linear(rows, first, [Matrix(name=first, gguf="mm.model.fc", rows=width)], None)
        build.norm_in_place(rows, NormSpec(eps=1e-5, kind="layer", bias=True), f"{name}.norm", "mm.post_norm")
        act = build.buffer(f"{name}.first.act", width)
        build.ops.append(Act(out=act, x=rows, kind="gelu", gated=False))
        return GatedMLP(size=self.inner_size, activation=self.activation, name=name).emit(build, act)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(dict(_DEFAULTS))
    out = vision.integer("out_hidden_size")
    if out != text.hidden_size:
        raise vision.fail("out_hidden_size", f"is not the {text.hidden_size} columns of the language model")
    norm, activation = NormSpec(eps=vision.number("rms_norm_eps")), read_activation(vision)
    mlp = GatedMLP(size=out, activation=activation)
    bias = vision.flag("attention_bias", False)
    made = qwen2_vl.any_size(vision, vision.integer("hidden_size"), norm, mlp, bias=bias, o_bias=False)
    return replace(
        made,
        patch_bias=True,
        patch_norm=norm,
        num_positions=(vision.integer("image_size") // vision.integer("patch_size")) ** 2,
        is_interpolated=True,
        merge_kind="columns",
        own_projector=Merger(inner_size=vision.integer("intermediate_size"), activation=activation),
    ), ()


def text(config: ConfigReader, spec: ModelSpec) -> ModelSpec:
    return qwen2_vl.text(config, spec, _SECTIONS)


def text_config(config: dict[str, Any]) -> Any:
    """Heads of the text part divide its columns, whatever families with the same layers take for usual."""
    found = config.get("text_config")
    if not isinstance(found, dict) or found.get("head_dim") is not None:
        return found
    hidden, count = found.get("hidden_size", 4096), found.get("num_attention_heads", 32)
    is_told = isinstance(hidden, int) and isinstance(count, int) and count > 0
    return {**found, "head_dim": hidden // count} if is_told else found
