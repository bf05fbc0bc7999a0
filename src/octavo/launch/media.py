"""The processor of a model that takes media, and the tokens of one that transcribes, from their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.files.generation_config import FILE_NAME
from octavo.files.parts import with_part_configs
from octavo.files.projector import read_projector
from octavo.files.reading import read_object
from octavo.served.media import AnyProcessor
from octavo.text.media.processor import MediaProcessor
from octavo.text.speech import SpeechVocabulary, speech_vocabulary
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import EngineInfo

_MAX_BYTES: Final = 4 << 20
#: Of the picture that a processor is tried with, in pixels.
_TRIED_SIDE: Final = 64


def load_processor(config: ModelConfig, info: EngineInfo, tokenizer: Tokenizer) -> AnyProcessor | None:
    """None where the engine takes text only. Raises `CheckpointError`."""
    if not info.media_kinds:
        return None
    # With numpy, which a server of text need not load.
    from octavo.text.media.files import OPENING, image_settings, sound_settings, video_settings
    from octavo.text.media.sound_table import sound_processor
    from octavo.text.media.table import media_processor

    values: Mapping[str, Any]
    video: Mapping[str, Any] | None = None
    files: list[dict[str, Any] | None] = [None, None]
    source = Path(config.model if config.mmproj is None else config.mmproj)
    if config.mmproj is not None:
        projector = read_projector(source)
        values, settings = projector.config, projector.settings
    else:
        values = with_part_configs(read_object(source / "config.json", _MAX_BYTES), source)
        files = [_read(source / f"{name}_config.json") for name in ("processor", "preprocessor")]
        settings = image_settings(*files)
        video = video_settings(files[0], _read(source / "video_preprocessor_config.json"), files[1])
    opening = tokenizer.decode(tokenizer.encode(""), skip_special_tokens=False)
    settings = {**settings, OPENING: opening}

    def processor_of_files() -> AnyProcessor | None:
        found = media_processor(values, settings, tokenizer.token_to_id, video)
        return found or sound_processor(values, sound_settings(*files), tokenizer.token_to_id)

    processor = tried(processor_of_files, str(source))
    if processor is None:
        raise CheckpointError(f"{source}: octavo knows no processor of media for this model.")
    if isinstance(processor, MediaProcessor) and processor.placeholder_id < 0:
        text = getattr(processor, "row_text", processor.placeholder)
        raise CheckpointError(f"{config.model}: the vocabulary has no token {text!r}, which stands for rows of images.")
    return processor


def tried(make: Callable[[], AnyProcessor | None], source: str) -> AnyProcessor | None:
    """A processor that has prepared a picture: what is wrong with the settings in its files, which anyone may have
    written, is told at the start and not by each request. Raises `CheckpointError`."""
    import numpy as np

    try:
        processor = make()
        if isinstance(processor, MediaProcessor):
            processor.image(np.zeros((_TRIED_SIDE, _TRIED_SIDE, 3), np.uint8), {})
    except InvalidRequest as error:
        raise CheckpointError(f"{source}: the model's processor shows no pictures: {error.message}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source}: the settings of the model's processor of media cannot be used: {type(error).__name__}: {error}"
        ) from error
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
