"""InternVL: a class token that is dropped, what layers add is scaled by column, squares of patches are one row."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Block, Sequential
from octavo.models.builder import Builder
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_LAYERS, ConfigReader
from octavo.models.params import Matrix
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.models.vision.vit import read_heads, side
from octavo.ops.operands import Buffer
from octavo.ops.stream_operations import Multiply

HF: Final = (
    (r"^(model\.)?vision_tower\.", f"{ROOM}."),
    (rf"^{ROOM}\.embeddings\.patch_embeddings\.projection\.", f"{ROOM}.patches."),
    (rf"^{ROOM}\.embeddings\.position_embeddings$", f"{ROOM}.positions.weight"),
    (rf"^{ROOM}\.embeddings\.cls_token$", f"{ROOM}.class_token"),
    (rf"^{ROOM}\.encoder\.layer\.", f"{ROOM}.layers."),
    (rf"^{ROOM}\.layernorm\.", f"{ROOM}.post_norm."),
    (rf"^({ROOM}\.layers\.\d+\.)layernorm_before\.", r"\1input_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)layernorm_after\.", r"\1post_attention_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)attention\.projection_layer\.", r"\1self_attn.o_proj."),
    (rf"^({ROOM}\.layers\.\d+\.)attention\.", r"\1self_attn."),
    (rf"^({ROOM}\.layers\.\d+\.)lambda_1$", r"\1self_attn.scale"),
    (rf"^({ROOM}\.layers\.\d+\.)lambda_2$", r"\1mlp.scale"),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc1\.", r"\1up_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc2\.", r"\1down_proj."),
    (r"^(model\.)?multi_modal_projector\.layer_norm\.", f"{ROOM}.projector.norm."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", f"{ROOM}.projector.up."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", f"{ROOM}.projector.down."),
)
_DEFAULTS: Final[dict[str, Any]] = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 448, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6, "norm_type": "layer_norm",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """What a block gives, each column multiplied by a number of its own."""

    block: Block
    name: str

    def emit(self, build: Builder, x: Buffer) -> Buffer:
        out = self.block.emit(build, x)
        declared = Matrix(name=f"{self.name}.scale", gguf=f"{self.name}.scale", rows=out.width)
        build.ops.append(Multiply(x=out, factors=build.vector([declared], declared.name, "", "bias")))
        return out


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    config.refuse_unless("vision_feature_layer", (-1,))
    config.refuse_unless("vision_feature_select_strategy", ("default",))
    vision = config.section("vision_config").with_defaults(_DEFAULTS)
    vision = vision.replaced(**{key: side(vision, key) for key in ("image_size", "patch_size")})
    vision.refuse_unless("num_channels", (3,))
    vision.refuse_unless("use_mask_token", (False,))
    vision.refuse_unless("use_absolute_position_embeddings", (True,))
    vision.refuse_unless("norm_type", ("layer_norm", "rms_norm"))
    hidden = vision.integer("hidden_size")
    heads = read_heads(vision, hidden)
    layer_norm = NormSpec(eps=vision.number("layer_norm_eps"), kind="layer", bias=True)
    attention = Attention(
        heads=heads,
        scale=heads.head_dim**-0.5,
        bias=vision.flag("attention_bias", False),
        o_bias=True,
        qk_norm=NormSpec(eps=1e-6) if vision.flag("use_qk_norm", False) else None,
        qk_norm_of="row",
        causal=False,
    )
    mlp = MLP(size=vision.integer("intermediate_size"), activation=read_activation(vision), bias=True)
    layer = Sequential(
        norm=layer_norm if vision.get("norm_type") == "layer_norm" else NormSpec(eps=layer_norm.eps),
        attention=Scaled(block=attention, name="self_attn"),
        mlp=Scaled(block=mlp, name="mlp"),
    )
    patch, image = vision.integer("patch_size"), vision.integer("image_size")
    return TowerSpec(
        patch_values=3 * patch * patch,
        hidden_size=hidden,
        num_positions=(image // patch) ** 2 + 1,
        layers=(layer,) * vision.integer("num_hidden_layers", high=MAX_LAYERS),
        has_class_token=True,
        post_norm=None if vision.flag("use_mean_pooling", True) else layer_norm,
        merge=_merge(config) ** 2,
        projector=ProjectorSpec(
            norm=replace(layer_norm, eps=1e-5),
            inner_size=text.hidden_size,
            activation=read_activation(config, "projector_hidden_act", "gelu"),
        ),
    ), ()


def _merge(config: ConfigReader) -> int:
    ratio = config.number("downsample_ratio", 0.5)
    if ratio <= 0 or 1 / ratio != int(1 / ratio):
        raise config.fail("downsample_ratio", "is not one part of a whole number of patches")
    return int(1 / ratio)
