"""MiniCPM-V: a picture as a whole, about as large as the tower likes, and cut into slices of the grid nearest to it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import InvalidRequest
from octavo.base.media import NUMBER, PreparedMedia
from octavo.text.media import images

_MOST_SLICES: Final = 64
#: Of a side of a slice behind its resizing, in patches; a narrower picture is refused.
_MOST_PATCHES: Final = 4096


class SlicingProcessor:
    """`processor.MediaProcessor`. `image_size`: of the pictures that the learned positions are those of; `merges`: so
    many times squares of 2 x 2 become one; `num_queries`: rows of each slice, however large; 0: they go by its patches.
    `placeholder`: the text of a template, `row_text`: of a row. `wraps_slices`: all of them stand between the marks,
    each as a picture of its own."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder: str,
        placeholder_id: int,
        row_text: str,
        patch_size: int,
        image_size: int,
        merges: int,
        num_queries: int = 0,
        wraps_slices: bool = False,
    ) -> None:
        self._num_queries, self._wraps_slices = num_queries, wraps_slices
        self.placeholder, self.placeholder_id, self.row_text = placeholder, placeholder_id, row_text
        self._patch_size, self._num_places = patch_size, image_size // patch_size
        self._merges, self._settings = merges, settings
        self._scale = int(settings.get("scale_resolution", 448))
        self._levels = images.levels(settings, images.HALF, images.HALF)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options, _is_option, f"`max_slice_nums` (1 to {_MOST_SLICES})")
        most = int(options.get("max_slice_nums", self._settings.get("max_slice_nums", 9)))
        if not self._settings.get("slice_mode", True) or options.get("detail") == "low":
            most = 1
        slices, columns = self._slices(pixels, most)
        cut = [self._patches(each) for each in slices]
        lens = np.array([len(found) for found, _ in cut], np.int32)
        arrays = {
            "patches": np.concatenate([found for found, _ in cut])[None],
            "positions": np.concatenate([self._positions(places) for _, places in cut])[None],
            "levels": self._levels,
            "lens": lens,
        }
        rows = (lens // 4**self._merges).tolist()
        if self._num_queries:
            rows = [self._num_queries] * len(lens)
            arrays["places"] = np.concatenate([places for _, places in cut])
        return images.prepared("image", arrays, sum(rows), self._text(rows, columns))

    def _slices(self, pixels: np.ndarray, most: int) -> tuple[list[np.ndarray], int]:
        """The whole picture, then its slices line by line, and how many are in a line; 0: there are none."""
        height, width = pixels.shape[:2]
        lines, columns = self._grid(height, width, most)
        whole = self._resized(pixels, *self._size(height, width, grows=not columns))
        if not columns:
            return [whole], 0
        step_high, step_wide = _nearest(height, lines) / lines, _nearest(width, columns) / columns
        high, wide = self._size(step_high, step_wide, grows=True)
        return [whole, *images.tiles(self._resized(pixels, lines * high, columns * wide), high, wide)], columns

    def _grid(self, height: int, width: int, most: int) -> tuple[int, int]:
        """Lines and columns of slices, nearest to the picture's ratio; of equal ones that of more lines."""
        count = min(math.ceil(width * height / self._scale**2), most)
        if count <= 1:
            return 0, 0
        ratio = math.log(width / height)
        best, nearest = (1, 1), math.inf
        for number in (count - 1, count, count + 1):
            for lines in range(1, number + 1) if 1 < number <= most else ():
                distance = abs(ratio - math.log(number // lines / lines))
                if number % lines == 0 and (distance, -lines) < (nearest, -best[0]):
                    best, nearest = (lines, number // lines), distance
        return best

    def _size(self, height: float, width: float, *, grows: bool) -> tuple[int, int]:
        """About as many pixels as the tower likes, where there are more; `grows`: or fewer."""
        if height * width > self._scale**2 or grows:
            ratio = width / height
            height = int(self._scale / math.sqrt(ratio))
            width = int(height * ratio)
        step = self._patch_size * 2**self._merges
        size = _nearest(height, step), _nearest(width, step)
        if max(size) > _MOST_PATCHES * self._patch_size:
            raise InvalidRequest("The image is too narrow for its length.", "image")
        return size

    def _resized(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        return images.resized(pixels, height, width, int(self._settings.get("resample", images.BICUBIC)))

    def _patches(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `images.patches`; patches that become one stand together, also those that are merged twice."""
        found, places = images.patches(pixels, self._patch_size, 2**self._merges)
        if self._merges < 2:
            return found, places
        order = np.arange(16).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(-1)
        return tuple(each.reshape(-1, 16, each.shape[1])[:, order].reshape(each.shape) for each in (found, places))  # type: ignore[return-value]

    def _positions(self, places: np.ndarray) -> np.ndarray:
        count = (places.max(0) + 1).astype(np.float32)
        shares = places.astype(np.float32) / count
        if self._num_queries:  # of which the reference multiplies, and in float64
            shares = (places * (1 / count.astype(np.float64))).astype(np.float32)
        line, column = images.nearest_places(shares, self._num_places).T
        found: np.ndarray = (line * self._num_places + column).astype(np.int32)
        return found

    def _text(self, rows: list[int], columns: int) -> str:
        number = f"<image_id>{NUMBER}</image_id>" if self._settings.get("use_image_id", True) else ""
        whole = f"{number}<image>{self.row_text * rows[0]}</image>"
        mark = "image" if self._wraps_slices else "slice"
        slices = [f"<{mark}>{self.row_text * count}</{mark}>" for count in rows[1:]]
        lines = "\n".join("".join(slices[at : at + columns]) for at in range(0, len(slices), columns or 1))
        return whole + (f"<slice>{lines}</slice>" if self._wraps_slices and lines else lines)


def _nearest(length: float, step: int) -> int:
    """The multiple of a step, at least one."""
    return max(round(length / step) * step, step)


def _is_option(name: str, value: Any) -> bool:
    return name == "max_slice_nums" and type(value) is int and 0 < value <= _MOST_SLICES
