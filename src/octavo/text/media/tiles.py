"""Llama 3.2 with its vision and Llama 4: a picture on the canvas of tiles that it fits best, with its own ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import CheckpointError
from octavo.base.media import PreparedMedia
from octavo.text.media import images

#: Of Llama 4: what stands for a row, and around and between the tiles.
_ROW: Final = "<|patch|>"
_BEGIN, _END, _WHOLE = "<|image_start|>", "<|image_end|>", "<|image|>"
_NEXT, _LINE = "<|tile_x_separator|>", "<|tile_y_separator|>"
_MOST: Final = 64


def grids(most: int) -> list[tuple[int, int]]:
    """Lines and columns of up to so many tiles."""
    return [(lines, columns) for lines in range(1, most + 1) for columns in range(1, most // lines + 1)]


def best_grid(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """That on which a picture is made larger, and least; if there is none, smaller, and least. Of equal ones that with
    the fewest tiles."""

    def worth(grid: tuple[int, int]) -> tuple[bool, float, int]:
        scale = min(grid[0] * side / height, grid[1] * side / width)
        return scale < 1, abs(scale - 1) if scale >= 1 else -scale, grid[0] * grid[1]

    return min(grids(most), key=worth)


def scaled(height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
    """The largest size within another one with the same ratio."""
    wide, high = to_width / width, to_height / height
    if wide < high:
        return min(max(math.floor(height * wide), 1), to_height), to_width
    return to_height, min(max(math.floor(width * high), 1), to_width)


def on_canvas(pixels: np.ndarray, side: int, grid: tuple[int, int], resample: int) -> np.ndarray:
    """In the corner of a black canvas, no larger than it is, but as large as a tile."""
    height, width = pixels.shape[:2]
    canvas = np.zeros((grid[0] * side, grid[1] * side, 3), np.uint8)
    room = [min(max(length, side), count * side) for length, count in zip((height, width), grid, strict=True)]
    new_height, new_width = scaled(height, width, room[0], room[1])
    canvas[:new_height, :new_width] = images.resized(pixels, new_height, new_width, resample)
    return canvas


def tile_side(settings: Mapping[str, Any], image_size: int) -> int:
    """Of a tile, as the image processor's settings and the tower have it. Raises CheckpointError where they differ."""
    size = settings.get("size") or {"height": image_size, "width": image_size}
    if size != {"height": image_size, "width": image_size}:
        raise CheckpointError(
            f"The image processor's `size` is {size}, and the tower sees {image_size} x {image_size}."
        )
    for key in ("do_resize", "do_pad"):
        if settings.get(key) is False:
            raise CheckpointError(f"The image processor's `{key}` is false, which cuts no tiles.")
    return image_size


class MllamaProcessor:
    """`processor.MediaProcessor`. `settings`: of the image processor; `patch_size`, `image_size` and `most_tiles`: the
    tower's. A picture is one token, which layers see the rows of beside the text."""

    placeholder = "<|image|>"

    def __init__(
        self, settings: Mapping[str, Any], *, placeholder_id: int, patch_size: int, image_size: int, most_tiles: int
    ) -> None:
        self.placeholder_id = placeholder_id
        self._side, self._patch_size, self._most = tile_side(settings, image_size), patch_size, most_tiles
        if (found := settings.get("max_image_tiles") or most_tiles) != most_tiles:
            raise CheckpointError(f"The image processor makes {found} tiles, and the tower sees {most_tiles}.")
        self._resample = int(settings.get("resample", images.BILINEAR))
        self._levels = images.levels(settings, images.HALF, images.HALF)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options)
        most = 1 if options.get("detail") == "low" else self._most
        height, width = pixels.shape[:2]
        grid = best_grid(height, width, self._side, most)
        canvas = on_canvas(pixels, self._side, grid, self._resample)
        cut = [images.patches(tile, self._patch_size)[0] for tile in images.tiles(canvas, self._side, self._side)]
        arrays = {
            "patches": np.stack(cut),
            "levels": self._levels,
            "ratio": np.array([1 + grids(self._most).index(grid)], np.int32),  # 0 is none
        }
        return images.prepared("image", arrays, 1, self.placeholder)


class Llama4Processor:
    """`processor.MediaProcessor`. `settings`: of the image processor; `patch_size` and `image_size`: the tower's, of a
    tile; `merge`: so many patches along a side are one row. Behind several tiles comes the whole picture as one."""

    placeholder = _WHOLE
    row_text = _ROW

    def __init__(
        self, settings: Mapping[str, Any], *, placeholder_id: int, patch_size: int, image_size: int, merge: int
    ) -> None:
        self.placeholder_id = placeholder_id
        self._side, self._patch_size, self._merge = tile_side(settings, image_size), patch_size, merge
        if settings.get("resize_to_max_canvas"):
            raise CheckpointError("The image processor's `resize_to_max_canvas` is not implemented: set it to false.")
        self._most = int(settings.get("max_patches") or 16)
        self._resample = int(settings.get("resample", images.BILINEAR))
        self._levels = images.levels(settings, images.HALF, images.HALF, rounded=images.bfloat16)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options, _is_option, f"`max_patches` (tiles, 1 to {_MOST})")
        most = 1 if options.get("detail") == "low" else int(options.get("max_patches", self._most))
        height, width = pixels.shape[:2]
        lines, columns = best_grid(height, width, self._side, most)
        canvas = on_canvas(pixels, self._side, (lines, columns), self._resample)
        tiles = images.tiles(canvas, self._side, self._side)
        if len(tiles) > 1:
            tiles.append(images.resized(pixels, self._side, self._side, self._resample))
        cut = [images.patches(tile, self._patch_size, self._merge) for tile in tiles]
        places = np.stack([places for _, places in cut]).transpose(2, 0, 1)  # lines, columns
        along = self._side // self._patch_size
        arrays = {
            "patches": np.stack([found for found, _ in cut]),
            # Of the class, at position 0 of the table, column and line are 0 too.
            "positions": np.stack((places[0] * along + places[1], places[1], places[0])),
            "levels": self._levels,
        }
        rows = (along // self._merge) ** 2
        tile = _ROW * rows
        of_tiles = (_NEXT.join([tile] * columns) + _LINE) * lines if len(tiles) > 1 else ""
        return images.prepared("image", arrays, rows * len(tiles), f"{_BEGIN}{of_tiles}{_WHOLE}{tile}{_END}")


def _is_option(name: str, value: Any) -> bool:
    return name == "max_patches" and type(value) is int and 0 < value <= _MOST
