"""InternVL: a picture is cut into the square tiles whose grid is most like it, and seen as a whole beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.text.media import images

_MOST_TILES: Final = 64


class InternVLProcessor:
    """`processor.MediaProcessor`. `settings`: of the image processor; `patch_size` and `image_size`: the tower's, of a
    tile; `merge`: so many patches along a side are one row."""

    placeholder = "<IMG_CONTEXT>"

    def __init__(
        self, settings: Mapping[str, Any], *, placeholder_id: int, patch_size: int, image_size: int, merge: int
    ) -> None:
        self.placeholder_id = placeholder_id
        self._settings = settings
        self._patch_size, self._side, self._merge = patch_size, image_size, merge
        self._levels = images.levels(settings, images.CLIP_MEAN, images.CLIP_STD)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(
            options,
            _is_option,
            f"`crop_to_patches` (true or false), `min_patches` and `max_patches` (1 to {_MOST_TILES})",
        )
        found = {**self._settings, **options}
        least, most = int(found.get("min_patches", 1)), int(found.get("max_patches", 12))
        if least > most:
            raise InvalidRequest("`min_patches` is larger than `max_patches`.", "mm_processor_kwargs")
        # Released settings say that pictures are not cut; the family's processor cuts them all the same.
        cuts = options.get("crop_to_patches", True) and options.get("detail") != "low" and most > 1
        side, resample = self._side, int(self._settings.get("resample", images.BICUBIC))
        tiles = [images.resized(pixels, side, side, resample)]
        if cuts:
            lines, columns = _grid(pixels.shape[0], pixels.shape[1], side, least, most)
            if lines * columns > 1:
                tiles = [
                    *images.tiles(images.resized(pixels, lines * side, columns * side, resample), side, side),
                    *tiles,
                ]
        cut = [images.patches(tile, self._patch_size, self._merge) for tile in tiles]
        columns = side // self._patch_size
        arrays = {
            "patches": np.stack([patches for patches, _ in cut]),
            "positions": np.stack([places[:, 0] * columns + places[:, 1] for _, places in cut]),
            "levels": self._levels,
        }
        rows = len(tiles) * (columns // self._merge) ** 2
        return images.prepared("image", arrays, rows, self.rows_text(rows))

    def rows_text(self, rows: int) -> str:
        """As `processor.RowsProcessor`."""
        return f"<img>{self.placeholder * rows}</img>"


def _is_option(name: str, value: Any) -> bool:
    if name == "crop_to_patches":
        return isinstance(value, bool)
    return name in ("min_patches", "max_patches") and type(value) is int and 0 < value <= _MOST_TILES


def _grid(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Lines and columns of tiles, `least` to `most` in all: the ratio nearest to the picture's. Of equal ones that of
    more tiles, unless they would be more than twice the picture."""
    grids = [(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if least <= c * r <= most]
    best, nearest = (1, 1), float("inf")
    for columns, lines in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / lines)
        if distance < nearest:
            best, nearest = (lines, columns), distance
        elif distance == nearest and width * height > 0.5 * side * side * columns * lines:
            best = lines, columns
    return best
