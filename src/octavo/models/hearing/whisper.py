"""Whisper's encoder as a tower: two convolutions, learned positions, layers that see all of a piece of a sound."""

from __future__ import annotations

from typing import Any, Final

from octavo.models.blocks import MLP, Attention, Sequential
from octavo.models.common import read_activation
from octavo.models.config_reader import MAX_HEAD_DIM, MAX_LAYERS, ConfigReader
from octavo.models.encoder import FramesSpec
from octavo.models.spec import NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM
from octavo.ops.operands import Heads
from octavo.ops.operations import MergeKind

#: From the names of transformers to those of a tower.
RENAMES: Final = (
    (r"^(model\.)?audio_tower\.", f"{ROOM}."),
    (rf"^{ROOM}\.embed_positions\.", f"{ROOM}.positions."),
    (rf"^{ROOM}\.layer_norm\.", f"{ROOM}.post_norm."),
    (rf"^({ROOM}\.layers\.\d+\.)self_attn_layer_norm\.", r"\1input_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.)final_layer_norm\.", r"\1post_attention_layernorm."),
    (rf"^({ROOM}\.layers\.\d+\.self_attn\.)out_proj\.", r"\1o_proj."),
    (rf"^({ROOM}\.layers\.\d+\.)fc1\.", r"\1mlp.up_proj."),
    (rf"^({ROOM}\.layers\.\d+\.)fc2\.", r"\1mlp.down_proj."),
)
FLATTENED: Final = rf"{ROOM}\.conv[12]\.weight"
NORM: Final = NormSpec(eps=1e-5, kind="layer", bias=True)
#: What configurations leave out, since it is transformers' default.
DEFAULTS: Final[dict[str, Any]] = {
    "d_model": 384, "encoder_layers": 4, "encoder_attention_heads": 6, "encoder_ffn_dim": 1536, "num_mel_bins": 80,
    "max_source_positions": 1500, "activation_function": "gelu",
}  # fmt: skip
#: Of Whisper large, which Qwen2-Audio and Voxtral began with.
LARGE: Final[dict[str, Any]] = {
    **DEFAULTS, "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120,
    "num_mel_bins": 128,
}  # fmt: skip
_MAX_CHANNELS: Final = 1024


def section(config: ConfigReader, defaults: dict[str, Any]) -> ConfigReader:
    """The encoder's part of a configuration, under Whisper's keys."""
    audio = config.section("audio_config")
    names = {
        "d_model": "hidden_size", "encoder_layers": "num_hidden_layers", "encoder_ffn_dim": "intermediate_size",
        "encoder_attention_heads": "num_attention_heads",
    }  # fmt: skip
    return audio.aliased(**names).with_defaults(defaults)


def tower(
    audio: ConfigReader,
    projector: ProjectorSpec,
    *,
    merge: int,
    merge_kind: MergeKind = "rows",
    post_norm: NormSpec | None = NORM,
) -> TowerSpec:
    """`merge`, `merge_kind`: how many rows of the encoder become one in front of the projector, and how."""
    audio.refuse_unless("scale_embedding", (False,))
    width, count = audio.integer("d_model"), audio.integer("encoder_attention_heads")
    head_dim = width // count
    if width % count or head_dim % 2 or head_dim > MAX_HEAD_DIM:
        raise audio.fail("encoder_attention_heads", f"does not divide the {width} columns into even parts")
    audio.refuse_unless("head_dim", (head_dim,))
    heads = Heads(num_heads=count, num_kv_heads=count, head_dim=head_dim)
    activation = read_activation(audio, "activation_function")
    # A row sees the rows of the sound, and none that only stand for silence behind it: the ends of keys say which.
    attention = Attention(heads=heads, scale=head_dim**-0.5, bias=True, k_bias=False, o_bias=True, reads_key_ends=True)
    mlp = MLP(size=audio.integer("encoder_ffn_dim"), activation=activation, bias=True)
    channels = audio.integer("num_mel_bins", high=_MAX_CHANNELS)
    return TowerSpec(
        patch_values=3 * channels,
        hidden_size=width,
        num_positions=audio.integer("max_source_positions"),
        layers=(Sequential(norm=NORM, attention=attention, mlp=mlp),)
        * audio.integer("encoder_layers", high=MAX_LAYERS),
        post_norm=post_norm,
        merge=merge,
        merge_kind=merge_kind,
        projector=projector,
        kinds=("audio",),
        # The convolutions' activation is gelu whatever the layers' is.
        sound=FramesSpec(channels=channels, activation="gelu"),
    )
