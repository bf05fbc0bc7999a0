"""LLaVA, Gemma 3, BLIP-2: a picture is brought to the one size of its tower, and has as many rows as any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octavo.base.errors import CheckpointError
from octavo.base.media import PreparedMedia
from octavo.text.media import images


class SquareProcessor:
    """`processor.MediaProcessor`. `settings`: of the image processor; `patch_size` and `image_size`: the tower's.

    `merge`: so many patches along a side are one row. `row_text`: what stands for a row, if not the placeholder;
    `around`: what stands before and behind them. `brings_bos`: the token that texts begin with is a part of that, and
    stands nowhere else. `num_rows`: of a picture, whatever its patches. `end_id`: of the token
    that an answer begins behind.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder: str,
        placeholder_id: int,
        patch_size: int,
        image_size: int,
        has_class_row: bool = False,
        merge: int = 1,
        row_text: str | None = None,
        around: tuple[str, str] = ("", ""),
        brings_bos: bool = False,
        num_rows: int | None = None,
        end_id: int | None = None,
    ) -> None:
        self.placeholder = placeholder
        self.row_text = row_text or placeholder
        self.brings_bos = brings_bos
        self.end_ids = () if end_id is None else (end_id,)
        self._around, self._merge = around, merge
        self.placeholder_id = placeholder_id
        self._settings = settings
        self._patch_size = patch_size
        self._levels = images.levels(settings, images.CLIP_MEAN, images.CLIP_STD)
        self._height, self._width = self._size_of("crop_size" if self._cuts else "size", image_size)
        if (self._height, self._width) != (image_size, image_size):
            raise CheckpointError(
                f"The image processor makes pictures of {self._height} x {self._width}, and the tower sees "
                f"{image_size} x {image_size}."
            )
        own = (image_size // patch_size // merge) ** 2 + has_class_row
        self._num_rows = own if num_rows is None else num_rows

    @property
    def _cuts(self) -> bool:
        return bool(self._settings.get("do_center_crop", True))

    def _size_of(self, key: str, default: int) -> tuple[int, int]:
        found = self._settings.get(key, default)
        if isinstance(found, int):
            return found, found
        side = found.get("shortest_edge")
        return (side, side) if side is not None else (found["height"], found["width"])

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options)
        return self.pictures([pixels], self.picture_text)

    @property
    def picture_text(self) -> str:
        """What stands for one picture."""
        return self.rows_text(self._num_rows)

    def rows_text(self, rows: int) -> str:
        """As `processor.RowsProcessor`."""
        before, behind = self._around
        return f"{before}{self.row_text * rows}{behind}"

    def pictures(self, parts: Sequence[np.ndarray], text: str) -> PreparedMedia:
        """An image that the tower sees as several pictures. `text`: with a `picture_text` for each."""
        cut = [self._patches(pixels) for pixels in parts]
        columns = self._width // self._patch_size
        arrays = {
            "patches": np.stack([found for found, _ in cut]),
            "positions": np.stack([places[:, 0] * columns + places[:, 1] for _, places in cut]),
            "levels": self._levels,
        }
        return images.prepared("image", arrays, self._num_rows * len(parts), text)

    def _patches(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`images.patches` of a picture of any size."""
        if self._settings.get("do_pad"):
            mean = self._settings.get("image_mean") or images.CLIP_MEAN
            pixels = images.squared(pixels, [int(value * 255) for value in mean])
        if self._settings.get("do_resize", True):
            pixels = images.resized(pixels, *self._resized_size(*pixels.shape[:2]), self._resample)
        if self._cuts:
            pixels = images.center_cut(pixels, self._height, self._width)
        return images.patches(pixels, self._patch_size, self._merge)

    @property
    def _resample(self) -> int:
        return int(self._settings.get("resample", images.BICUBIC))

    def _resized_size(self, height: int, width: int) -> tuple[int, int]:
        size = self._settings.get("size", self._height)
        side = size if isinstance(size, int) else size.get("shortest_edge")
        if side is None:
            return size["height"], size["width"]
        longer = int(side * max(height, width) / min(height, width))
        return (longer, side) if width <= height else (side, longer)
