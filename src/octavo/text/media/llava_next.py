"""LLaVA-NeXT: a picture as a whole, and cut into square tiles of the grid that fits it best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from octavo.base.errors import CheckpointError
from octavo.base.media import PreparedMedia
from octavo.text.media import images

_GRIDS: Final = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_NEWLINE: Final = -1


class LlavaNextProcessor:
    """`processor.MediaProcessor`. `settings`: of the image processor; `patch_size` and `image_size`: the tower's, of a
    tile; `grids`: (height, width) of the pictures that are cut into tiles."""

    placeholder = "<image>"

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder_id: int,
        patch_size: int,
        image_size: int,
        grids: Sequence[Sequence[int]] | None,
    ) -> None:
        self.placeholder_id = placeholder_id
        self._settings = settings
        self._patch_size, self._side = patch_size, image_size
        self._grids = _GRIDS if grids is None else grids
        if not self._grids or any(
            len(grid) != 2 or min(grid) < 1 or any(n % image_size for n in grid) for grid in self._grids
        ):
            raise CheckpointError(
                f"`image_grid_pinpoints` is not a list of heights and widths in multiples of {image_size} pixels."
            )
        for key in ("size", "crop_size"):
            found = settings.get(key) or image_size
            sides = {found} if isinstance(found, int) else set(found.values())
            if sides != {image_size}:
                raise CheckpointError(
                    f"The image processor's `{key}` is {found}, and the tower sees {image_size} x {image_size}."
                )
        self._levels = images.levels(settings, images.CLIP_MEAN, images.CLIP_STD)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options)
        height, width = pixels.shape[:2]
        side, resample = self._side, int(self._settings.get("resample", images.BICUBIC))
        # `detail: low` takes the smallest grid; the whole picture alone is nothing that the models were trained with.
        grids = self._grids
        if options.get("detail") == "low":
            grids = [min(grids, key=lambda grid: grid[0] * grid[1])]
        grid = images.best_grid(height, width, grids)
        whole = images.resized(pixels, side, side, resample)
        tiles = [whole, *images.tiles(images.fitted(pixels, *grid, resample), side, side)]
        cut = [images.patches(tile, self._patch_size) for tile in tiles]
        order = self._order(height, width, grid[0] // side, grid[1] // side)
        columns = side // self._patch_size
        arrays = {
            "patches": np.stack([found for found, _ in cut]),
            "positions": np.stack([places[:, 0] * columns + places[:, 1] for _, places in cut]),
            "levels": self._levels,
            "order": order,
        }
        return images.prepared("image", arrays, len(order), self.rows_text(len(order)))

    def rows_text(self, rows: int) -> str:
        """As `processor.RowsProcessor`."""
        return self.placeholder * rows

    def _order(self, height: int, width: int, lines: int, columns: int) -> np.ndarray:
        """Of the rows of all tiles, int32: the whole picture, then the others as lines of one, without what only bars
        fill, and a mark at the end of each. `height`, `width`: of the picture; `lines`, `columns`: of tiles."""
        side = self._side // self._patch_size
        whole = np.arange(side * side)
        high, wide = lines * side, columns * side
        of_tiles = side * side + np.arange(high * wide).reshape(lines, columns, side, side)
        grid = of_tiles.transpose(0, 2, 1, 3).reshape(high, wide)
        if width / height > wide / high:
            bar = (high - int(round(height * (wide / width), 7))) // 2
            grid = grid[bar : high - bar]
        else:
            bar = (wide - int(round(width * (high / height), 7))) // 2
            grid = grid[:, bar : wide - bar]
        marked = np.concatenate((grid, np.full((len(grid), 1), _NEWLINE)), 1)
        return np.concatenate((whole, marked.reshape(-1))).astype(np.int32)
