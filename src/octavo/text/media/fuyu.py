"""Fuyu: a picture keeps its size up to a limit, is filled up to whole patches, and is shown line by line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from octavo.base.errors import CheckpointError
from octavo.base.media import PreparedMedia
from octavo.text.media import images

_SIZE: Final = {"height": 1080, "width": 1920}


class FuyuProcessor:
    """`processor.MediaProcessor`. `end_id`: of the token that an answer begins behind."""

    placeholder = "|SPEAKER|"
    brings_bos = True

    def __init__(
        self, settings: Mapping[str, Any], *, placeholder_id: int, patch_size: int, end_id: int | None = None
    ) -> None:
        self.placeholder_id = placeholder_id
        self.end_ids = () if end_id is None else (end_id,)
        self._settings = settings
        self._side = patch_size
        size = settings.get("size") or _SIZE
        self._height, self._width = int(size["height"]), int(size["width"])
        _check(settings, self._height, self._width, patch_size)
        self._filling = int(settings.get("padding_value", 1.0))
        self._levels = images.levels(settings, images.HALF, images.HALF)

    def image(self, pixels: np.ndarray, options: Mapping[str, Any]) -> PreparedMedia:
        images.check_options(options)
        height, width = pixels.shape[:2]
        if self._settings.get("do_resize", True) and (height > self._height or width > self._width):
            scale = min(self._height / height, self._width / width)
            height, width = max(1, int(height * scale)), max(1, int(width * scale))
            pixels = images.resized(pixels, height, width, int(self._settings.get("resample", images.BILINEAR)))
        lines, columns = -(-height // self._side), -(-width // self._side)
        canvas = np.full((lines * self._side, columns * self._side, 3), self._filling, np.uint8)
        canvas[:height, :width] = pixels
        found, _ = images.patches(canvas, self._side)
        arrays = {
            "patches": found[None],
            "positions": np.arange(len(found), dtype=np.int32)[None],
            "levels": self._levels,
        }
        text = f"{self.placeholder * columns}|NEWLINE|" * lines + "<s>"
        return images.prepared("image", arrays, len(found), text)


def _check(settings: Mapping[str, Any], height: int, width: int, side: int) -> None:
    """Raises CheckpointError for what transformers would not make whole patches of, or does otherwise than here."""
    patch = settings.get("patch_size") or {"height": side, "width": side}
    if (patch["height"], patch["width"]) != (side, side):
        raise CheckpointError(f"The image processor cuts patches of {patch}, and the model reads {side} x {side}.")
    if height % side or width % side:
        raise CheckpointError(f"The image processor's `size` {height} x {width} is not in whole patches of {side}.")
    if not settings.get("do_pad", True):
        raise CheckpointError("The image processor's `do_pad` false is not implemented: set it to true.")
    if settings.get("padding_mode", "constant") != "constant":
        raise CheckpointError("The image processor's `padding_mode` is not implemented: it can be `constant`.")
