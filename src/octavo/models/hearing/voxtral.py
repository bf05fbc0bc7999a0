"""Voxtral: Whisper's encoder, rows of it beside each other, and two matrices without biases."""

from __future__ import annotations

from typing import Final

from octavo.models.common import read_activation
from octavo.models.config_reader import ConfigReader
from octavo.models.hearing import whisper
from octavo.models.spec import ModelSpec, ProjectorSpec, TowerSpec
from octavo.models.tower import ROOM

HF: Final = (
    *whisper.RENAMES,
    (r"^(model\.)?multi_modal_projector\.linear_1\.", f"{ROOM}.projector.up."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", f"{ROOM}.projector.down."),
)


def tower(config: ConfigReader, text: ModelSpec) -> tuple[TowerSpec, tuple[str, ...]]:
    audio = whisper.section(config, whisper.LARGE)
    audio.refuse_unless("model_type", ("voxtral_encoder",))
    merge, rest = divmod(audio.integer("encoder_ffn_dim"), audio.integer("d_model"))
    if rest or audio.integer("max_source_positions") % merge:
        raise audio.fail("encoder_ffn_dim", "is not as wide as some rows of the encoder that divide a piece of a sound")
    projector = ProjectorSpec(
        inner_size=text.hidden_size,
        activation=read_activation(config, "projector_hidden_act", "gelu"),
        bias=False,
    )
    return whisper.tower(audio, projector, merge=merge), ()
