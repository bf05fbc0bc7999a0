"""Pixtral and Mistral 3: a picture keeps its ratio and is shown line by line, with a mark behind each line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from octavo.base.media import PreparedMedia
from octavo.text.media import images

_LONGEST, _LIMIT = 1024, 4096


class PixtralProcessor:
    """`processor.MediaProcessor`. `merge`: so many patches along a side are one row."""

    placeholder = "[IMG]"

    def __init__(self, settings: Mapping[str, Any], *, placeholder_id: int, patch_size: int, merge: int) -> None:
        self.placeholder_id = placeholder_id
        self._settings = settings
        self._patch_size, self._merge = patch_size, merge
        self._levels = images.levels(settings, images.CLIP_MEAN, images.CLIP_STD)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options, _is_option, f"`size` ({{'longest_edge': pixels}}, 1 to {_LIMIT})")
        size = options.get("size") or self._settings.get("size") or {}
        longest = size.get("longest_edge") or _LONGEST
        high, wide = size.get("height") or longest, size.get("width") or longest
        height, width = pixels.shape[:2]
        ratio = max(height / high, width / wide)
        if ratio > 1:
            height, width = math.floor(height / ratio), math.floor(width / ratio)
        side = self._patch_size * self._merge
        lines, columns = max(1, -(-height // side)), max(1, -(-width // side))
        resample = int(self._settings.get("resample", images.BICUBIC))
        pixels = images.resized(pixels, lines * side, columns * side, resample)
        found, places = images.patches(pixels, self._patch_size, self._merge)
        arrays = {"patches": found[None], "positions": places.T[:, None], "levels": self._levels}
        text = "[IMG_BREAK]".join([self.placeholder * columns] * lines) + "[IMG_END]"
        return images.prepared("image", arrays, lines * columns, text)


def _is_option(name: str, value: Any) -> bool:
    return name == "size" and _is_edge(value)


def _is_edge(value: object) -> bool:
    return (
        isinstance(value, dict) and set(value) == {"longest_edge"} and type(value["longest_edge"]) is int
        and 0 < value["longest_edge"] <= _LIMIT
    )  # fmt: skip
