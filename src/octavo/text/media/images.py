"""What all families do to a picture: sizes, cuts, patches. Pillow resizes, as the original code of the families does.

Pictures are uint8 [height, width, 3]; values stay bytes up to the tower, which looks up in `levels` what a byte of a
channel means. So an item takes a quarter of the floats' room on its way, and equal bytes are equal items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from PIL import Image

from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.base.media import MediaKind, MediaTensor, PreparedMedia, media_digest

#: Of most towers.
CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)
HALF: Final = (0.5, 0.5, 0.5)
#: Pillow's numbers of filters.
LANCZOS: Final = 1
BILINEAR: Final = 2
BICUBIC: Final = 3


def check_options(
    options: Mapping[str, Any], is_known: Callable[[str, Any], bool] = lambda name, value: False, known: str = ""
) -> None:
    """What a request asks of a processor. `is_known`: an option with a value that it may have; `known`: all of them, in
    words. `detail` is known to all. Raises InvalidRequest."""
    for name, value in options.items():
        if name != "detail" and not is_known(name, value):
            others = f" with this value. It has {known}" if known else ""
            raise InvalidRequest(f"The model's image processor has no option `{name}`{others}.", "mm_processor_kwargs")


def resized(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """`resample`: Pillow's number of a filter."""
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), resample=Image.Resampling(resample))
    return np.asarray(image)


def center_cut(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of a picture, in black where it is too small."""
    old_height, old_width = pixels.shape[:2]
    padded_height, padded_width = max(height, old_height), max(width, old_width)
    top, left = -((old_height - padded_height) // 2), -((old_width - padded_width) // 2)
    canvas = np.zeros((padded_height, padded_width, 3), np.uint8)
    canvas[top : top + old_height, left : left + old_width] = pixels
    # A picture of odd size that is cut and not padded has its middle rounded down.
    y, x = (old_height - height) // 2 + top, (old_width - width) // 2 + left
    return canvas[y : y + height, x : x + width]


def best_grid(height: int, width: int, grids: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The (height, width) of those in which most of a picture is seen; of equal ones that which wastes least."""

    def worth(size: Sequence[int]) -> tuple[int, int]:
        scale = min(size[1] / width, size[0] / height)
        seen = min(int(width * scale) * int(height * scale), width * height)
        return seen, seen - size[0] * size[1]

    best = max(grids, key=worth)
    return best[0], best[1]


def fitted(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """As large as fits, in the middle of a black canvas of that size."""
    old_height, old_width = pixels.shape[:2]
    wide, high = width / old_width, height / old_height
    if wide < high:
        new_height, new_width = min(math.ceil(old_height * wide), height), width
    else:
        new_height, new_width = height, min(math.ceil(old_width * high), width)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + new_height, left : left + new_width] = resized(pixels, new_height, new_width, resample)
    return canvas


def tiles(pixels: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    """Line by line."""
    return [
        pixels[y : y + height, x : x + width]
        for y in range(0, pixels.shape[0], height)
        for x in range(0, pixels.shape[1], width)
    ]


def mixed_by_cubics(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [height, width, 3] of values float32 [H, W, 3], each a sum over 4 x 4 of them."""
    for axis, count in enumerate((height, width)):
        scale = np.float32(values.shape[axis] / count)
        at = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
        low = np.floor(at)
        total = np.zeros((), np.float32)
        for step in (-1, 0, 1, 2):
            index = np.clip(low + step, 0, values.shape[axis] - 1).astype(np.int64)
            share = cubic(np.abs(at - low - np.float32(step)))
            total = total + values.take(index, axis) * np.expand_dims(share, [i for i in range(3) if i != axis])
        values = total
    return values


def cubic(x: np.ndarray) -> np.ndarray:
    """How much counts what lies so far away, 0 to 2, float32: Keys' kernel with -0.75, as torch has it."""
    a = np.float32(-0.75)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    share: np.ndarray = np.where(x <= 1, near, far).astype(np.float32)
    return share


def nearest_places(shares: np.ndarray, count: int) -> np.ndarray:
    """Of shares float32 of a side, 0 to 1, the lines or columns of a table that has `count`, int64: where each lies. In
    the rounding of the reference, which is that of float32."""
    step = 1 / count
    bounds = (step + step * np.arange(math.ceil((1.0 - step) / step))).astype(np.float32)
    return np.searchsorted(bounds, shares, side="right")


def squared(pixels: np.ndarray, color: Sequence[int]) -> np.ndarray:
    """With bars of a colour, so that it is as high as wide."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = color
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = pixels
    return canvas


def patches(pixels: np.ndarray, size: int, merge: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [rows * columns, 3 * size * size], by channel, line and column, and the line and column of each patch,
    int32 [rows * columns, 2].

    merge > 1: the patches of a square of merge x merge stand together, the squares line by line.
    """
    rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
    grid = pixels[: rows * size, : columns * size].reshape(rows, size, columns, size, 3).transpose(0, 2, 4, 1, 3)
    found = grid.reshape(rows, columns, -1)
    places = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).astype(np.int32)
    return _merged(found, merge), _merged(places, merge)


def _merged(grid: np.ndarray, merge: int) -> np.ndarray:
    rows, columns, width = grid.shape
    squares = grid.reshape(rows // merge, merge, columns // merge, merge, width).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(squares.reshape(rows * columns, width))


def bfloat16(values: np.ndarray) -> np.ndarray:
    """float32, each the nearest that bfloat16 has; of two the even one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def levels(
    settings: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    rounded: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> np.ndarray:
    """float32 [3, 256]: what a byte means in each channel, by the settings of an image processor. `rounded`: each
    result on the way, where the family's processor computes in another type."""
    values = np.repeat(np.arange(256, dtype=np.uint8)[None], 3, 0)
    if settings.get("do_rescale", True):
        found = (values.astype(np.float64) * float(settings.get("rescale_factor", 1 / 255))).astype(np.float32)
        found = rounded(found)
    else:
        found = values.astype(np.float32)
    if settings.get("do_normalize", True):
        found_mean, found_std = (
            np.broadcast_to(np.array(settings.get(key) or default, np.float32), 3)
            for key, default in (("image_mean", mean), ("image_std", std))
        )
        if not found_std.all():
            raise CheckpointError(f"The image processor's `image_std` is {found_std.tolist()}: nothing divides by 0.")
        found = rounded(rounded(found - found_mean[:, None]) / found_std[:, None])
    return found


def prepared(
    kind: MediaKind,
    arrays: Mapping[str, np.ndarray],
    rows: int,
    text: str,
    grid: tuple[int, int, int] | None = None,
    time_step: float = 1.0,
) -> PreparedMedia:
    tensors = {
        name: MediaTensor(str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
        for name, array in arrays.items()
    }
    digest = media_digest(kind, tensors, grid, time_step)
    return PreparedMedia(kind, digest, tensors, rows, text, grid, time_step)
