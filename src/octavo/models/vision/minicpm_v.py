"""MiniCPM-V: SigLIP's tower over slices of any size. In 2.5 and 2.6 learned queries look at its rows; in 4.6 they
become a quarter as many within it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from octavo.base.errors import CheckpointError
from octavo.models.blocks import Attention, Sequential
from octavo.models.builder import Builder
from octavo.models.config_reader import ConfigReader
from octavo.models.layout import Split
from octavo.models.params import Matrix
from octavo.models.resampler import ResamplerSpec
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import RENAMES, vit
from octavo.ops.operands import Buffer, Heads
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
_RESAMPLER: Final = f"{ROOM}.resampler"
_SO400M: Final[dict[str, Any]] = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 980, "patch_size": 14,
}  # fmt: skip
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


HF: Final = (
    (r"^llm\.", ""),
    (r"^vpm\.", f"{ROOM}."),
    *RENAMES,
    (r"^resampler\.", f"{_RESAMPLER}."),
    (rf"^{_RESAMPLER}\.attn\.in_proj_(weight|bias)$", rf"{_RESAMPLER}.qkv.\1"),
    (rf"^{_RESAMPLER}\.attn\.out_proj\.", f"{_RESAMPLER}.o_proj."),
    (rf"^{_RESAMPLER}\.(query|proj)$", rf"{_RESAMPLER}.\1.weight"),
)
SPLIT: Final = Split(rf"({_RESAMPLER}\.)qkv\.(\w+)", (r"\1q_proj.\2", r"\1k_proj.\2", r"\1v_proj.\2"))
TRANSPOSED: Final = rf"{_RESAMPLER}\.proj\.weight"
#: Of the language model, by the version.
_TEXTS: Final = {"2.5": "llama", "2.6": "qwen2"}
_QUERY_HEAD_DIM: Final = 128


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    vision = config.section("vision_config").with_defaults(dict(_SO400M))
    vision.refuse_unless("model_type", ("siglip_vision_model", "siglip", "idefics2", "idefics2_vision"))
    total = vision.integer("num_hidden_layers", low=2)
    used = total - 1 if config.flag("drop_vision_last_layer", True) else total
    made, unused = vit(vision, "siglip_vision_model", ProjectorSpec(), num_layers=used, has_post_norm=True)
    count = text.hidden_size // _QUERY_HEAD_DIM
    if text.hidden_size % _QUERY_HEAD_DIM:
        raise config.fail("hidden_size", f"is not a multiple of {_QUERY_HEAD_DIM}, as heads of the queries are")
    resampler = ResamplerSpec(
        num_queries=config.integer("query_num", 64),
        heads=Heads(num_heads=count, num_kv_heads=count, head_dim=_QUERY_HEAD_DIM),
        norm=NormSpec(eps=1e-6, kind="layer", bias=True),
        name=_RESAMPLER,
    )
    return replace(made, resampler=resampler), (*unused, rf"{_RESAMPLER}\.pos_embed")


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Raises CheckpointError for another version, which has another language model or resampler."""
    version = str(config.get("version", "2.0" if config.get("hidden_size") == 2304 else "2.5"))
    if version not in _TEXTS:
        raise CheckpointError(f"config: version = {version[:20]!r} of MiniCPM-V is not supported; 2.5 and 2.6 are")
    return {**config, "model_type": _TEXTS[version], "vision_config": None, "auto_map": None}


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
