"""Idefics 3 and SmolVLM: a picture is cut into square tiles, and seen as a whole beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.media import PreparedMedia
from octavo.text.media import images

_MOST_PIXELS_A_SIDE: Final = 4096
_AROUND: Final = "<fake_token_around_image>"
_WHOLE: Final = "<global-img>"


class Idefics3Processor:
    """`processor.MediaProcessor`. `settings`: of the image processor; `image_size`: of the pictures that the learned
    positions are those of; `merge`: so many patches along a side are one row."""

    placeholder = "<image>"

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder_id: int,
        patch_size: int,
        image_size: int,
        merge: int,
        default_side: int = 364,
    ) -> None:
        self.placeholder_id = placeholder_id
        self._settings = settings
        self._patch_size, self._merge = patch_size, merge
        self._num_places = image_size // patch_size
        self._default_side = default_side
        self._levels = images.levels(settings, images.HALF, images.HALF)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(
            options, _is_option, "`do_image_splitting` (true or false) and `size` ({'longest_edge': pixels})"
        )
        splits = options.get("do_image_splitting", self._settings.get("do_image_splitting", True))
        splits = splits and options.get("detail") != "low"
        tiles, rows, columns = self._tiles(pixels, options.get("size") or self._settings.get("size"), splits)
        cut = [images.patches(tile, self._patch_size, self._merge) for tile in tiles]
        num_rows = len(cut[0][0]) // self._merge**2
        arrays = {
            "patches": np.stack([found for found, _ in cut]),
            "positions": np.stack([self._positions(places) for _, places in cut]),
            "levels": self._levels,
        }
        return images.prepared("image", arrays, num_rows * len(tiles), self._text(rows, columns, num_rows))

    def _tiles(
        self, pixels: np.ndarray, size: Mapping[str, int] | None, splits: bool
    ) -> tuple[list[np.ndarray], int, int]:
        """Square pictures, the whole one last, and in how many lines and columns the others lie."""
        resample, side = int(self._settings.get("resample", images.LANCZOS)), self._side
        longest = (size or {}).get("longest_edge", 4 * self._default_side)
        if self._settings.get("do_resize", True):
            height, width = pixels.shape[:2]
            pixels = images.resized(pixels, *_within(height, width, longest), resample)
        if splits:
            height, width = pixels.shape[:2]
            ratio = width / height
            if width >= height:
                width = _up(width, side)
                height = _up(int(width / ratio), side)
            else:
                height = _up(height, side)
                width = _up(int(height * ratio), side)
            # The reference fits this size once more where it fits sides to a longest edge alone.
            pixels = images.resized(pixels, height, width, resample)
            if height > side or width > side:
                rows, columns = height // side, width // side
                return [*images.tiles(pixels, side, side), images.resized(pixels, side, side, resample)], rows, columns
        return [images.resized(pixels, side, side, resample)], 0, 0

    @property
    def _side(self) -> int:
        return int((self._settings.get("max_image_size") or {}).get("longest_edge", self._default_side))

    def _positions(self, places: np.ndarray) -> np.ndarray:
        """Rows of the learned table, int32: of the line and column of a patch, as shares of the picture."""
        last = places.max(0) + 1
        shares = places.astype(np.float32) * (np.float32(1) / last.astype(np.float32))
        shares = np.minimum(shares, np.float32(1.0 - 1e-6))
        line, column = images.nearest_places(shares, self._num_places).T
        found: np.ndarray = (line * self._num_places + column).astype(np.int32)
        return found

    def _text(self, rows: int, columns: int, num_rows: int) -> str:
        image = self.placeholder * num_rows
        whole = f"{_AROUND}{_WHOLE}{image}{_AROUND}"
        if not rows:
            return whole
        lines = (
            "".join(f"{_AROUND}<row_{y + 1}_col_{x + 1}>{image}" for x in range(columns)) + "\n" for y in range(rows)
        )
        return "".join(lines) + "\n" + whole


def _is_option(name: str, value: Any) -> bool:
    return isinstance(value, bool) if name == "do_image_splitting" else name == "size" and _is_edge(value)


def _is_edge(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"longest_edge"}:
        return False
    edge = value["longest_edge"]
    return isinstance(edge, int) and 0 < edge <= _MOST_PIXELS_A_SIDE


def _up(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def _within(height: int, width: int, longest: int) -> tuple[int, int]:
    """The size whose longer side is `longest`; the other is even."""
    ratio = width / height
    if width >= height:
        width, height = longest, int(longest / ratio)
        height += height % 2
    else:
        height, width = longest, int(longest * ratio)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    ratio = width / height
    if width >= height and width > _MOST_PIXELS_A_SIDE:
        width, height = _MOST_PIXELS_A_SIDE, int(_MOST_PIXELS_A_SIDE / ratio)
    elif height > width and height > _MOST_PIXELS_A_SIDE:
        height, width = _MOST_PIXELS_A_SIDE, int(_MOST_PIXELS_A_SIDE * ratio)
    return max(height, 1), max(width, 1)
