"""Gemma 3: a picture of one size; of a long one, if that is asked for, also parts of it (pan and scan)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.media import PreparedMedia
from octavo.text.media import images
from octavo.text.media.square import SquareProcessor

_SWITCH: Final = "do_pan_and_scan"
_LEAST_SIDE: Final = "pan_and_scan_min_crop_size"
_MOST_PARTS: Final = "pan_and_scan_max_num_crops"
_LEAST_RATIO: Final = "pan_and_scan_min_ratio_to_activate"
_DEFAULTS: Final[Mapping[str, Any]] = {_SWITCH: False, _LEAST_SIDE: 256, _MOST_PARTS: 4, _LEAST_RATIO: 1.2}
#: Of a picture and its parts, the parts at most.
_LIMIT: Final = 64


class Gemma3Processor(SquareProcessor):
    """`processor.MediaProcessor`."""

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(
            options,
            _is_option,
            f"`{_SWITCH}` (true or false), `{_LEAST_SIDE}` (pixels), `{_MOST_PARTS}` (2 to {_LIMIT}) and "
            f"`{_LEAST_RATIO}` (at least 1)",
        )
        given = {name: self._settings[name] for name in _DEFAULTS if self._settings.get(name) is not None}
        found = {**_DEFAULTS, **given, **options}
        parts: list[np.ndarray] = []
        if found[_SWITCH] and found.get("detail") != "low":
            parts = _parts(pixels, found[_LEAST_SIDE], found[_MOST_PARTS], found[_LEAST_RATIO])
        if not parts:
            return self.pictures([pixels], self.picture_text)
        text = f"Here is the original image {self.picture_text} and here are some crops to help you see better "
        return self.pictures([pixels, *parts], text + " ".join([self.picture_text] * len(parts)))


def _is_option(name: str, value: Any) -> bool:
    if name == _SWITCH:
        return isinstance(value, bool)
    if name == _LEAST_RATIO:
        return type(value) in (int, float) and 1 <= value < math.inf
    if name == _MOST_PARTS:
        return type(value) is int and 2 <= value <= _LIMIT
    return name == _LEAST_SIDE and type(value) is int and value >= 1


def _parts(pixels: np.ndarray, least_side: int, most: int, least_ratio: float) -> list[np.ndarray]:
    """Of a picture that is long enough the parts along its longer side, as long as they would not be too small."""
    longer, shorter = max(pixels.shape[:2]), min(pixels.shape[:2])
    ratio = longer / shorter
    if ratio < least_ratio:
        return []
    count = min(most, max(2, min(longer // least_side, math.floor(ratio + 0.5))))
    length = math.ceil(longer / count)
    if min(length, shorter) < least_side:
        return []
    if pixels.shape[1] >= pixels.shape[0]:
        return [pixels[:, first : first + length] for first in range(0, longer, length)]
    return [pixels[first : first + length] for first in range(0, longer, length)]
