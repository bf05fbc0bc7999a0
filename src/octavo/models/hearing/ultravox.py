"""Ultravox: Whisper's encoder; eight of its rows beside each other, RMS norms and SwiGLU make a row of the model's."""

from __future__ import annotations

from typing import Final

from octavo.models.config_reader import ConfigReader
from octavo.models.hearing import whisper
from octavo.models.layout import Split
from octavo.models.spec import ModelSpec, NormSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM

HF: Final = (
    *whisper.RENAMES,
    (r"^(model\.)?multi_modal_projector\.linear_1\.", f"{ROOM}.projector.up."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", f"{ROOM}.projector.down."),
    (r"^(model\.)?multi_modal_projector\.ln_pre\.", f"{ROOM}.projector.norm."),
    (r"^(model\.)?multi_modal_projector\.ln_mid\.", f"{ROOM}.projector.inner_norm."),
    (r"^(model\.)?multi_modal_projector\.ln_post\.", f"{ROOM}.projector.last_norm."),
)
#: What the first matrix makes is multiplied by what its second half makes, behind the activation.
GATED: Final = Split(
    rf"{ROOM}\.projector\.up\.weight", (f"{ROOM}.projector.up.weight", f"{ROOM}.projector.gate.weight")
)
_NORM: Final = NormSpec(eps=1e-6)
_MAX_STACKED: Final = 64


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    audio = whisper.section(config, whisper.DEFAULTS)
    audio.refuse_unless("model_type", ("whisper",))
    for key in ("audio_model_lora_config", "text_model_lora_config"):
        config.section(key).refuse_unless("r", (0,))
    config.refuse_unless("audio_latency_block_size", ())
    config.refuse_unless("num_projector_layers", (0,))
    config.refuse_unless("llm_only_training", (False,))
    config.refuse_unless("projector_act", ("swiglu",))
    size = config.integer("hidden_size", 4096)
    if size % 2:
        raise config.fail("hidden_size", "has no halves")
    is_inner = config.flag("projector_ln_mid", False)
    projector = ProjectorSpec(
        norm=_NORM,
        is_gated=True,
        inner_size=size // 2,
        activation="silu",
        inner_norm=_NORM if is_inner else None,
        last_norm=None if is_inner else _NORM,
        bias=False,
    )
    return whisper.tower(audio, projector, merge=config.integer("stack_factor", 8, _MAX_STACKED)), ()
