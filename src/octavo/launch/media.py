"""The processor of a model that takes media, and the tokens of one that transcribes, from their files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError
from octavo.files.generation_config import FILE_NAME
from octavo.files.projector import read_projector
from octavo.files.reading import read_object
from octavo.text.media.processor import MediaProcessor
from octavo.text.speech import SpeechVocabulary, speech_vocabulary
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import EngineInfo

_MAX_BYTES: Final = 4 << 20


def load_processor(config: ModelConfig, info: EngineInfo, tokenizer: Tokenizer) -> MediaProcessor | None:
    """None where the engine takes text only. Raises `CheckpointError`."""
    if not info.media_kinds:
        return None
    # With numpy, which a server of text need not load.
    from octavo.text.media.table import image_settings, media_processor, video_settings

    values: Mapping[str, Any]
    video: Mapping[str, Any] | None = None
    source = Path(config.model if config.mmproj is None else config.mmproj)
    if config.mmproj is not None:
        projector = read_projector(source)
        values, settings = projector.config, projector.settings
    else:
        values = read_object(source / "config.json", _MAX_BYTES)
        newer, older = _read(source / "processor_config.json"), _read(source / "preprocessor_config.json")
        settings = image_settings(newer, older)
        video = video_settings(newer, _read(source / "video_preprocessor_config.json"), older)
    processor = media_processor(values, settings, tokenizer.token_to_id, video)
    if processor is None:
        raise CheckpointError(f"{source}: octavo knows no image processor for this model.")
    if processor.placeholder_id < 0:
        text = getattr(processor, "row_text", processor.placeholder)
        raise CheckpointError(f"{config.model}: the vocabulary has no token {text!r}, which stands for rows of images.")
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
