"""Vision transformers of CLIP, SigLIP and BLIP-2: layer norms and biases, all patches see each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, ConfigReader
from octavo.models.spec import NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import CODES, ROOM
from octavo.ops.operands import Heads

#: Values that configurations leave out, since they are transformers' defaults.
DEFAULTS: Final[Mapping[str, dict[str, Any]]] = {
    "clip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    },
    "siglip_vision_model": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
    "idefics3_vision": {
        "hidden_size": 1152, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 32, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    },
    "blip_2_vision_model": {
        "hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
        "image_size": 224, "patch_size": 14, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
    },
}  # fmt: skip

#: From the names of transformers to those of a tower; the first brings them to `tower.`.
RENAMES: Final = (
    (r"^(model\.)?(vision_tower|vision_model)\.(vision_model\.)?", f"{ROOM}."),
    (rf"^{ROOM}\.encoder\.", f"{ROOM}."),
    (rf"^{ROOM}\.embeddings\.patch_embedding\.", f"{ROOM}.patches."),
    (rf"^{ROOM}\.embeddings\.position_embedding\.", f"{ROOM}.positions."),
    (rf"^{ROOM}\.embeddings\.class_embedding$", f"{ROOM}.class_token"),
    (rf"^{ROOM}\.pre_layrnorm\.", f"{ROOM}.pre_norm."),
    (rf"^{ROOM}\.post_layernorm\.", f"{ROOM}.post_norm."),
    (rf"^({ROOM}\.layers\.\d+\.)layer_norm1\.", r"\1input_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)layer_norm2\.", r"\1post_attention_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.self_attn\.)out_proj\.", r"\1o_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc1\.", r"\1up_proj."),
    (rf"^({ROOM}\.layers\.\d+\.mlp\.)fc2\.", r"\1down_proj."),
)
FLATTENED: Final = rf"{ROOM}\.(patches|projector\.merger)\.weight|{CODES}\..*\.weight"
_NEVER_READ: Final = (rf"{ROOM}\.embeddings\.position_ids", rf"{ROOM}\.head\..*")


def read_heads(config: ConfigReader, hidden: int, key: str = "num_attention_heads", *, parts: int = 2) -> Heads:
    """Heads that divide the columns of a tower, and can be divided in `parts` themselves: 4 where lines and columns
    turn a half each. Raises CheckpointError."""
    count = config.integer(key)
    head_dim = hidden // count
    if hidden % count or head_dim % parts or head_dim > MAX_HEAD_DIM:
        into = "even parts" if parts == 2 else "parts for lines and columns"
        raise config.fail(key, f"does not divide the {hidden} columns into {into}")
    return Heads(num_heads=count, num_kv_heads=count, head_dim=head_dim)


def side(vision: ConfigReader, key: str) -> int:
    """Of a square that configurations tell as one number or two."""
    found = vision.get(key)
    if isinstance(found, list) and len(found) == 2 and found[0] == found[1]:
        found = found[0]
    if type(found) is not int or found < 1:
        raise vision.fail(key, "is not the side of a square")
    return found


def vit(
    config: ConfigReader,
    kind: str,
    projector: ProjectorSpec,
    *,
    num_layers: int | None = None,
    has_post_norm: bool,
    keeps_class: bool = False,
    merge: int = 1,
) -> tuple[TowerSpec, tuple[str, ...]]:
    """The tower of a `vision_config` of the `model_type` kind, and patterns of the tensors that it has no use for.

    `num_layers`: the first ones of all; None: all. `keeps_class`: the row of the class token is one of a picture's.
    """
    config = config.with_defaults(DEFAULTS[kind])
    config.refuse_unless("num_channels", (3,))
    hidden = config.integer("hidden_size")
    heads = read_heads(config, hidden)
    norm = NormSpec(eps=config.number("layer_norm_eps"), kind="layer", bias=True)
    layer = Sequential(
        norm=norm,
        attention=Attention(
            heads=heads, scale=heads.head_dim**-0.5, bias=config.flag("qkv_bias", True), o_bias=True, causal=False
        ),
        mlp=MLP(size=config.integer("intermediate_size"), activation=read_activation(config), bias=True),
    )
    is_clip = kind == "clip_vision_model"
    has_class = is_clip or kind == "blip_2_vision_model"
    patch, image = config.integer("patch_size"), config.integer("image_size")
    total = config.integer("num_hidden_layers", high=MAX_LAYERS)
    used = total if num_layers is None else num_layers
    tower = TowerSpec(
        patch_values=3 * patch * patch,
        hidden_size=hidden,
        num_positions=(image // patch) ** 2 + has_class,
        layers=(layer,) * used,
        has_class_token=has_class,
        keeps_class=has_class and keeps_class,
        patch_bias=not is_clip,
        pre_norm=norm if is_clip else None,
        post_norm=norm if has_post_norm else None,
        merge=merge,
        projector=projector,
    )
    unread = [rf"{ROOM}\.layers\.{number}\..*" for number in range(used, total)]
    unread += [] if has_post_norm else [rf"{ROOM}\.post_norm\..*"]
    return tower, (*_NEVER_READ, *unread)
