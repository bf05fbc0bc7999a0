"""Phi-3-V: a picture is brought to as many tiles of 336 pixels as it may have, and seen as a whole beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import InvalidRequest
from octavo.base.media import NUMBER, PreparedMedia
from octavo.text.media import images

_WHITE: Final = 255
_MOST_TILES: Final = 64
#: In the rows of all tiles and these behind them: the end of a line, and what stands between tiles and whole.
_LINE_END, _BETWEEN = -2, -1


class Phi3VProcessor:
    """`processor.MediaProcessor`. `row_text`: what stands for a row; `opening`: what every text begins with, and so
    what stands behind a picture: the texts around it are read on their own. `side`: of a tile."""

    placeholder = f"<|image_{NUMBER}|>"

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder_id: int,
        row_text: str,
        opening: str,
        side: int,
        patch_size: int,
    ) -> None:
        self.placeholder_id, self.row_text = placeholder_id, row_text
        self._opening = opening
        self._side, self._patch_size = side, patch_size
        self._num_crops = int(settings.get("num_crops", 1))
        self._levels = images.levels(settings, images.CLIP_MEAN, images.CLIP_STD)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options, _is_option, f"`num_crops` (1 to {_MOST_TILES})")
        count = 1 if options.get("detail") == "low" else int(options.get("num_crops", self._num_crops))
        side = self._side
        pixels = self._tiled(pixels, count)
        tiles = images.tiles(pixels, side, side)
        values = np.stack([self._levels[channel][pixels[..., channel]] for channel in range(3)], -1)
        whole, places = images.patches(images.mixed_by_cubics(values, side, side), self._patch_size, 2)
        columns = side // self._patch_size
        order = self._order(pixels.shape[0] // side, pixels.shape[1] // side)
        arrays = {
            # Of the whole there are values, since the family mixes it of them, and not bytes.
            "values": whole.astype(np.float32)[None],
            "patches": np.stack([images.patches(tile, self._patch_size, 2)[0] for tile in tiles]),
            "positions": np.repeat((places[:, 0] * columns + places[:, 1])[None], len(tiles) + 1, 0),
            "levels": self._levels,
            "order": order,
        }
        return images.prepared("image", arrays, len(order), self.rows_text(len(order)))

    def rows_text(self, rows: int) -> str:
        """As `processor.RowsProcessor`."""
        return self.row_text * rows + self._opening

    def _tiled(self, pixels: np.ndarray, count: int) -> np.ndarray:
        """As wide as most tiles in a line allow, `count` in all, with white bars that make the lines whole; a high one
        lies on its side meanwhile."""
        is_high = pixels.shape[1] < pixels.shape[0]
        if is_high:
            pixels = np.ascontiguousarray(pixels.transpose(1, 0, 2))
        height, width = pixels.shape[:2]
        ratio, side = width / height, self._side
        columns = 1
        while (columns + 1) * math.ceil((columns + 1) / ratio) <= count:
            columns += 1
        width = columns * side
        height = int(width / ratio)
        if not height:
            raise InvalidRequest("The image is too narrow for its length.", "image")
        lines = -(-height // side)
        canvas = np.full((lines * side, width, 3), _WHITE, np.uint8)
        top = (lines * side - height) // 2
        canvas[top : top + height] = images.resized(pixels, height, width, images.BILINEAR)
        return np.ascontiguousarray(canvas.transpose(1, 0, 2)) if is_high else canvas

    def _order(self, lines: int, columns: int) -> np.ndarray:
        """Of the rows, int32: those of the tiles as lines of one picture, the mark between, those of the whole."""
        side = self._side // self._patch_size // 2

        def marked(grid: np.ndarray) -> np.ndarray:
            return np.concatenate((grid, np.full((len(grid), 1), _LINE_END)), 1).reshape(-1)

        whole = np.arange(side * side).reshape(side, side)
        tiles = side * side + np.arange(lines * columns * side * side).reshape(lines, columns, side, side)
        grid = tiles.transpose(0, 2, 1, 3).reshape(lines * side, columns * side)
        return np.concatenate((marked(grid), [_BETWEEN], marked(whole))).astype(np.int32)


def _is_option(name: str, value: Any) -> bool:
    return name == "num_crops" and type(value) is int and 0 < value <= _MOST_TILES
