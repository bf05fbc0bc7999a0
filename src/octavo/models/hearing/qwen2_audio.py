"""Qwen2-Audio: Whisper's encoder, the mean of each two of its rows in front of its last norm, and one matrix."""

from __future__ import annotations

from typing import Final

from octavo.models.config_reader import ConfigReader
from octavo.models.hearing import whisper
from octavo.models.spec import ModelSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM

HF: Final = (
    (r"^(model\.)?audio_tower\.layer_norm\.", f"{ROOM}.projector.norm."),
    (r"^(model\.)?multi_modal_projector\.linear\.", f"{ROOM}.projector."),
    *whisper.RENAMES,
)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    audio = whisper.section(config, whisper.LARGE)
    audio.refuse_unless("model_type", ("qwen2_audio_encoder",))
    projector = ProjectorSpec(norm=whisper.NORM)
    return whisper.tower(audio, projector, merge=2, merge_kind="mean", post_norm=None), ()
