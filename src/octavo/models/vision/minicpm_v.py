"""MiniCPM-V 4.6: SigLIP's tower over slices of any size, whose patches become a quarter as many within it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from octavo.models.blocks import Attention, Sequential
from octavo.models.builder import Builder
from octavo.models.config_reader import ConfigReader
from octavo.models.params import Matrix
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import RENAMES, vit
from octavo.ops.operands import Buffer
from octavo.ops.operations import Act, Add, MergeRows

_INNER: Final = f"{ROOM}.inner"
HF_4_6: Final = (
    *RENAMES,
    (rf"^{ROOM}\.vit_merger\.", f"{_INNER}."),
    (rf"^{_INNER}\.self_attn\.out_proj\.", f"{_INNER}.self_attn.o_proj."),
    (r"^model\.merger\.mlp\.0\.pre_norm\.", f"{ROOM}.projector.norm."),
    (r"^model\.merger\.mlp\.0\.linear_1\.", f"{ROOM}.projector.up."),
    (r"^model\.merger\.mlp\.0\.linear_2\.", f"{ROOM}.projector.down."),
)
_SQUARE: Final = ([2, 2], (2, 2))


@dataclass(frozen=True, kw_only=True)
class WindowMerger:
    """`spec.InnerMerger`: four patches see each other and become one, their mean and what an MLP makes of all four."""

    behind: int
    attention: Attention
    norm: NormSpec
    size: int  # of the MLP
    count: int = 4

    def emit_attention(self, build: Builder, residual: Buffer) -> None:
        # Blocks name their tensors as those of a layer are named.
        build.part(_INNER, "v.vit_merger")
        x = build.norm(residual, self.norm, "layer_norm1", "ln1")
        build.ops.append(Add(residual=residual, x=self.attention.emit(build, x)))
        build.top()

    def emit_merged(self, build: Builder, residual: Buffer) -> Buffer:
        build.part(_INNER, "v.vit_merger")
        rows = build.buffer("merged", self.count * residual.width)
        build.ops.append(MergeRows(out=rows, x=residual, count=self.count))
        rows = build.norm(rows, self.norm, "pre_norm", "pre_norm")
        up = build.linear(rows, "up", [Matrix(name="linear_1", gguf="ffn_up", rows=self.size, bias=True)], None)
        act = build.buffer("act", self.size)
        build.ops.append(Act(out=act, x=up, kind="gelu_tanh", gated=False))
        down = Matrix(name="linear_2", gguf="ffn_down", rows=residual.width, bias=True)
        out = build.linear(act, "down", [down], None)
        build.top()
        return out


def tower_4_6(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    config.refuse_unless("drop_vision_last_layer", (False,))
    config.refuse_unless("merger_times", (1,))
    config.refuse_unless("merge_kernel_size", _SQUARE)
    config.refuse_unless("downsample_mode", ("16x", "4x"))
    vision = config.section("vision_config")
    vision.refuse_unless("window_kernel_size", _SQUARE)
    hidden = vision.integer("hidden_size", 768)
    projector = ProjectorSpec(norm=NormSpec(eps=1e-6, kind="layer", bias=True), inner_size=4 * hidden)
    made, unused = vit(vision, "siglip_vision_model", projector, has_post_norm=True, merge=4)
    if config.get("downsample_mode") == "4x":
        return made, (*unused, rf"{ROOM}\.inner\..*")
    layer = made.layers[0]
    assert isinstance(layer, Sequential) and isinstance(layer.attention, Attention)
    behind = config.integer("insert_layer_id", 6, len(made.layers) - 2, low=0)
    merger = WindowMerger(
        behind=behind, attention=layer.attention, norm=layer.norm, size=4 * vision.integer("intermediate_size", 3072)
    )
    return replace(made, inner=merger), unused
