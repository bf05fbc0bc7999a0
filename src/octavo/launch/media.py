"""The processor of a model that takes media, and the tokens of one that transcribes, from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.files.generation_config import FILE_NAME
from octavo.files.parts import with_part_configs
from octavo.files.reading import read_object
from octavo.served.media import AnyProcessor
from octavo.text.speech import SpeechVocabulary, speech_vocabulary
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import EngineInfo

_MAX_BYTES: Final = 4 << 20


def load_processor(config: ModelConfig, info: EngineInfo, tokenizer: Tokenizer) -> AnyProcessor | None:
    """None where the engine takes text only. Raises `CheckpointError`."""
    if not info.media_kinds:
        return None
    # With numpy, which a server of text need not load.
    from octavo.text.media.sound_table import sound_processor, sound_settings
    from octavo.text.media.table import OPENING, image_settings, media_processor

    directory = Path(config.model)
    files = [_read(directory / f"{name}_config.json") for name in ("processor", "preprocessor")]
    values = with_part_configs(read_object(directory / "config.json", _MAX_BYTES), directory)
    opening = tokenizer.decode(tokenizer.encode(""), skip_special_tokens=False)
    settings = {**image_settings(*files), OPENING: opening}
    processor: AnyProcessor | None = media_processor(values, settings, tokenizer.token_to_id)
    if processor is None:
        processor = sound_processor(values, sound_settings(*files), tokenizer.token_to_id)
    if processor is None:
        raise CheckpointError(f"{directory}: octavo knows no processor of media for this model.")
    return processor


def load_speech(config: ModelConfig, info: EngineInfo, tokenizer: Tokenizer) -> SpeechVocabulary | None:
    """None where the model does not transcribe. Raises `CheckpointError`."""
    if not info.encoder_channels:
        return None
    directory = Path(config.model)
    settings = {**(_read(directory / "config.json") or {}), **(_read(directory / FILE_NAME) or {})}
    return speech_vocabulary(tokenizer, info.vocab_size, settings, str(directory))


def _read(path: Path) -> dict[str, Any] | None:
    return read_object(path, _MAX_BYTES) if path.exists() else None
