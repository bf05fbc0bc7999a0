"""Qwen2-VL to 3, GLM-4V: a picture keeps its ratio, both sides are brought to multiples of a square of patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.text.media import images

_MOST_RATIO: Final = 200
_MOST_RATE: Final = 1000
#: Pixels of a picture; and the most that a request may ask for.
_LEAST, _MOST, _LIMIT = 56 * 56, 28 * 28 * 1280, 28 * 28 * 16384
#: What a tower has rotations for.
_MOST_PATCHES_A_SIDE: Final = 4096
#: From the places of patches and the side of a table to rows of it, and how much each counts.
Mixed = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
QWEN_IMAGE: Final = "<|image_pad|>"
#: Of Qwen, what templates write around the placeholder of a medium.
QWEN_MARKS: Final = ("<|vision_start|>", "<|vision_end|>")


def mixed_linearly(places: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the places int32 [patches, 2] the four rows of a square table of `side` lines between which each lies, int32
    [4, patches], and how much each counts, float32; the table's corners are those of the picture."""
    lows, highs, parts = [], [], []
    for axis in (0, 1):
        index = places[:, axis].astype(np.float32)
        at = index * np.float32(side - 1) / np.float32(max(1, int(index.max())))
        low = np.floor(at).astype(np.int32)
        lows.append(low)
        highs.append(np.minimum(low + 1, side - 1))
        parts.append(at - low)
    corners = [line * side + column for line in (lows[0], highs[0]) for column in (lows[1], highs[1])]
    shares = [line * column for line in (1 - parts[0], parts[0]) for column in (1 - parts[1], parts[1])]
    return np.stack(corners).astype(np.int32), np.stack(shares).astype(np.float32)


def mixed_by_cubics(places: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with sixteen rows, int32 [16, patches]; the table's edges are those of the picture, and what lies beyond
    them is as at the edge."""
    indices, shares = [], []
    for axis in (0, 1):
        count = np.float32(places[:, axis].max() + 1)
        middle = (places[:, axis].astype(np.float32) + np.float32(0.5)) / count * 2 - 1
        at = ((middle + 1) * np.float32(side) - 1) / 2
        low = np.floor(at)
        indices.append([np.clip(low + step, 0, side - 1).astype(np.int32) for step in (-1, 0, 1, 2)])
        shares.append([images.cubic(np.abs(at - low - step)) for step in (-1, 0, 1, 2)])
    corners = [line * side + column for line in indices[0] for column in indices[1]]
    return np.stack(corners), np.stack([line * column for line in shares[0] for column in shares[1]])


class Qwen2VLProcessor:
    """`processor.MediaProcessor`. The marks around a picture come from the chat template.

    `window`: rows along a side of what layers with windows see of a picture at once; 0: there are none.
    `table_side`: of a table of learned positions, which are mixed for other sizes; 0: there is none. `mixed`: in which
    way. `placeholder`: the text of its token; `marks`: what templates write around it. `grows`: sides below that of a
    square are brought to it before others.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        placeholder_id: int,
        patch_size: int,
        merge: int,
        window: int = 0,
        table_side: int = 0,
        mixed: Mixed = mixed_linearly,
        placeholder: str = QWEN_IMAGE,
        marks: tuple[str, str] = QWEN_MARKS,
        grows: bool = False,
    ) -> None:
        self._grows = grows
        self.image_mark = placeholder.join(marks)
        self.placeholder, self.placeholder_id = placeholder, placeholder_id
        self._mixed = mixed
        self._window, self._table_side = window, table_side
        self._settings = settings
        self._patch_size, self._merge = patch_size, merge
        self._levels = images.levels(settings, images.CLIP_MEAN, images.CLIP_STD)
        size = settings.get("size") or {}
        self._least = settings.get("min_pixels") or size.get("shortest_edge") or _LEAST
        self._most = settings.get("max_pixels") or size.get("longest_edge") or _MOST

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        options = self._checked(options)
        least, most = options.get("min_pixels", self._least), options.get("max_pixels", self._most)
        if options.get("detail") == "low":
            most = max(least, most // 4)
        if self._settings.get("do_resize", True):
            height, width = pixels.shape[:2]
            height, width = self._size(height, width, least, most)
            pixels = images.resized(pixels, height, width, int(self._settings.get("resample", images.BICUBIC)))
        found, places = images.patches(pixels, self._patch_size, self._merge)
        lines, columns = (int(count) // self._merge for count in places.max(0) + 1)
        rows = lines * columns
        arrays = self._arrays(found[None], places, self._levels)
        return images.prepared("image", arrays, rows, self.placeholder * rows, (1, lines, columns))

    def _checked(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options of pictures and videos alike, as a request may bring both. Raises InvalidRequest."""
        images.check_options(
            options,
            _is_option,
            f"`min_pixels` and `max_pixels` (1 to {_LIMIT}), and of videos `fps`, the frames a second (above 0, at "
            f"most {_MOST_RATE})",
        )
        return options

    def _arrays(self, found: np.ndarray, places: np.ndarray, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Of the patches of one or several pictures of a size, uint8 [S, patches, values], at the places of one."""
        lines, columns = (int(count) // self._merge for count in places.max(0) + 1)
        rows, count = lines * columns, len(found)
        arrays = {"levels": levels}
        if self._table_side:
            arrays["corners"], arrays["shares"] = self._mixed(places, self._table_side)
        if self._window:
            order, arrays["windows"] = _windows(lines, columns, self._window)
            arrays["windows"] *= self._merge**2
            own = np.argsort(order).astype(np.int32)
            arrays["order"] = np.concatenate([own + rows * number for number in range(count)])
            found = found.reshape(count, rows, -1, found.shape[2])[:, order].reshape(found.shape)
            places = places.reshape(rows, -1, 2)[order].reshape(places.shape)
        positions = np.repeat(places.T[:, None], count, 1)
        return {**arrays, "patches": found, "positions": positions}

    def _size(self, height: int, width: int, least: int, most: int) -> tuple[int, int]:
        factor = self._patch_size * self._merge
        if self._grows and min(height, width) < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        self._check_ratio(height, width)
        new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
        if new_height * new_width > most:
            beta = math.sqrt(height * width / most)
            new_height = max(factor, math.floor(height / beta / factor) * factor)
            new_width = max(factor, math.floor(width / beta / factor) * factor)
        elif new_height * new_width < least:
            beta = math.sqrt(least / (height * width))
            new_height = math.ceil(height * beta / factor) * factor
            new_width = math.ceil(width * beta / factor) * factor
        self._check_sides(new_height, new_width)
        return new_height, new_width

    def _check_ratio(self, height: int, width: int) -> None:
        if max(height, width) / min(height, width) > _MOST_RATIO:
            raise InvalidRequest(f"The longer side of an image may be at most {_MOST_RATIO} times the other.", "image")

    def _check_sides(self, height: int, width: int) -> None:
        longest = _MOST_PATCHES_A_SIDE * self._patch_size
        if max(height, width) > longest:
            raise InvalidRequest(f"A side of an image has at most {longest} pixels behind its resizing.", "image")


def _is_option(name: str, value: Any) -> bool:
    if name == "fps":
        return type(value) in (int, float) and 0 < value <= _MOST_RATE
    return name in ("min_pixels", "max_pixels") and type(value) is int and 0 < value <= _LIMIT


def _windows(lines: int, columns: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows in the order of the windows that they are in, int64 [rows], and the rows of each window, int32."""
    line, column = np.divmod(np.arange(lines * columns), columns)
    window = line // side * -(-columns // side) + column // side
    return np.argsort(window, kind="stable"), np.bincount(window).astype(np.int32)
