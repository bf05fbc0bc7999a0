"""What the files of a model say to its processors of media."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

#: In the settings of an image processor: the text of the tokens that every text begins with.
OPENING: Final = "octavo_opening"

Settings = Mapping[str, Any]


def image_settings(processor: Settings | None, preprocessor: Settings | None) -> Settings:
    """Of an image processor, from what processor_config.json and preprocessor_config.json hold, as far as they are
    there: the newer form has them in the former."""
    return _part("image_processor", processor, preprocessor)


def video_settings(processor: Settings | None, video: Settings | None, preprocessor: Settings | None) -> Settings:
    """Of a video processor, which may have a file of its own, video_preprocessor_config.json; older files have settings
    of pictures alone."""
    return _part("video_processor", processor, video, preprocessor)


def sound_settings(processor: Settings | None, preprocessor: Settings | None) -> Settings:
    """The same of a feature extractor."""
    return _part("feature_extractor", processor, preprocessor)


def _part(key: str, processor: Settings | None, *older: Settings | None) -> Settings:
    found = (processor or {}).get(key)
    return found if isinstance(found, Mapping) else next((each for each in older if each), {})


def row_id(config: Settings, kind: str, token_id: Callable[[str], int | None], text: str) -> int:
    """The token that stands for a row of a medium, which a configuration names or which has this text; -1: there is
    none."""
    for key in (f"{kind}_token_id", f"{kind}_token_index"):
        if isinstance(config.get(key), int):
            return int(config[key])
    found = token_id(text)
    return -1 if found is None else found
