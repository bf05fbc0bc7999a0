"""Which processor of sounds a model has, by its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from octavo.base.errors import CheckpointError
from octavo.text.media.files import row_id
from octavo.text.media.sounds import SoundProcessor, cut_qwen2, cut_ultravox, cut_voxtral


def sound_processor(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> SoundProcessor | None:
    """The processor of a model with this config.json; None: it hears nothing.

    `settings`: of the feature extractor, `files.sound_settings`. `token_id`: of a special token's text.
    """
    names = config.get("architectures") or ["?"]
    make = _PROCESSORS.get(str(names[0]))
    return None if make is None else make(config, settings, token_id)


#: Tokens that vocabularies have and texts do not: the first stands for rows of a sound where none is named.
_RESERVED = (
    "<|audio|>", "<|reserved_special_token_0|>", "<unused0>", "<|object_ref_start|>", "<|begin_of_audio|>",
    "<SPECIAL_20>", "[control_8]",
)  # fmt: skip


def _of_encoder(config: Mapping[str, Any], key: str, default: int) -> int:
    return int((config.get("audio_config") or {}).get(key) or default)


def _ultravox(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> SoundProcessor:
    vocabulary = int((config.get("text_config") or {}).get("vocab_size", 1 << 31))
    found = [(text, own) for text in _RESERVED if (own := token_id(text)) is not None and own < vocabulary]
    if not found:
        raise CheckpointError(
            f"The vocabulary has no token that could stand for a row of a sound: none of {', '.join(_RESERVED)}."
        )
    row_text, row_id = found[0]
    return SoundProcessor(
        settings,
        placeholder="<|audio|>",
        row_text=row_text,
        row_id=row_id,
        merge=int(config.get("stack_factor", 8)),
        cut=cut_ultravox,
        channels=_of_encoder(config, "num_mel_bins", 80),
        most_rows=_of_encoder(config, "max_source_positions", 1500),
    )


def _qwen2_audio(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> SoundProcessor:
    return SoundProcessor(
        settings,
        placeholder="<|AUDIO|>",
        mark="<|audio_bos|><|AUDIO|><|audio_eos|>",
        row_text="<|AUDIO|>",
        row_id=row_id(config, "audio", token_id, "<|AUDIO|>"),
        merge=2,
        cut=cut_qwen2,
        channels=_of_encoder(config, "num_mel_bins", 128),
        most_rows=_of_encoder(config, "max_source_positions", 1500),
    )


def _voxtral(
    config: Mapping[str, Any], settings: Mapping[str, Any], token_id: Callable[[str], int | None]
) -> SoundProcessor:
    return SoundProcessor(
        settings,
        placeholder="[AUDIO]",
        row_text="[AUDIO]",
        row_id=row_id(config, "audio", token_id, "[AUDIO]"),
        merge=_of_encoder(config, "intermediate_size", 5120) // _of_encoder(config, "hidden_size", 1280),
        cut=cut_voxtral,
        around=("[BEGIN_AUDIO]", ""),
        channels=_of_encoder(config, "num_mel_bins", 128),
        most_rows=_of_encoder(config, "max_source_positions", 1500),
    )


_PROCESSORS: dict[str, Callable[..., SoundProcessor]] = {
    "UltravoxModel": _ultravox,
    "Qwen2AudioForConditionalGeneration": _qwen2_audio,
    "VoxtralForConditionalGeneration": _voxtral,
}
