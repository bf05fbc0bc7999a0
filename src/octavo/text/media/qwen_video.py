"""Videos of Qwen2-VL, 2.5 and 3: frames in twos, each two as the patches of one picture, at positions in time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from octavo.base.errors import InvalidRequest
from octavo.base.media import PreparedMedia
from octavo.text.media import images
from octavo.text.media.qwen2_vl import QWEN_MARKS, Qwen2VLProcessor

#: What stands for a video, in Qwen3-VL with the marks around it: each two frames get their own.
_PAD: Final = "<|video_pad|>"
_START, _END = QWEN_MARKS
#: Pixels of a frame, as multiples of the pixels of a row.
_LEAST, _MOST = 128, 768
#: Pixels of all frames: what crosses to the engine in one message.
_MOST_IN_ALL: Final = 48_000_000
#: Frames a second of frames that come without times, as the models were trained.
_USUAL_RATE: Final = 2.0


class QwenVideoProcessor(Qwen2VLProcessor):
    """`processor.MediaProcessor` of a model that also takes videos.

    `video`: the settings of the video processor. `frames`: of a patch. `tokens_per_second`: positions that a second
    takes; 0: each two frames take one. `tells_times`: in the text, where each two frames stand as a picture does; and
    the bounds of pixels are those of all frames.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        video: Mapping[str, Any],
        video_id: int,
        frames: int = 2,
        tokens_per_second: float = 0.0,
        tells_times: bool = False,
        **own: Any,
    ) -> None:
        super().__init__(settings, **own)
        self.video_placeholder_id = video_id
        self.video_mark = f"{_START}{_PAD}{_END}"
        self.video_placeholder = self.video_mark if tells_times else _PAD
        self._frames, self._tokens_per_second, self._tells_times = frames, tokens_per_second, tells_times
        self._video = video
        means = {key: settings[key] for key in ("image_mean", "image_std") if key in settings}
        self._video_levels = images.levels({**means, **video}, images.CLIP_MEAN, images.CLIP_STD)

    def video(
        self, frames: Sequence[np.ndarray], times: Sequence[float] | None, duration: float, options: Mapping[str, Any]
    ) -> PreparedMedia:
        """`frames` uint8 [height, width, 3], all of a size, shown at `times` in seconds (None: not known) of a video
        of `duration` seconds. Raises InvalidRequest."""
        rate = self._checked(options).get("fps")
        if rate is not None or times is None:
            rate = rate or _USUAL_RATE
            times, duration = [number / rate for number in range(len(frames))], len(frames) / rate
        if len({frame.shape for frame in frames}) > 1:
            raise InvalidRequest("The frames of a video must have one size.", "video")
        height, width, _ = frames[0].shape
        height, width = self._frame_size(height, width, len(frames), options)
        grid, arrays = self._cut(self._resized(frames, height, width))
        count, rows = grid[0], grid[1] * grid[2]
        if self._tells_times:
            seconds = [*times, *[times[-1]] * (-len(times) % self._frames)]
            first, last = seconds[:: self._frames], seconds[self._frames - 1 :: self._frames]
            pad = f"{_START}{_PAD * rows}{_END}"
            text = "".join(f"<{(a + b) / 2:.1f} seconds>{pad}" for a, b in zip(first, last, strict=True))
            return images.prepared("video", arrays, count * rows, text, grid)
        step = 1.0
        if self._tokens_per_second:
            step = self._tokens_per_second * self._frames * duration / len(frames)
        return images.prepared("video", arrays, count * rows, _PAD * count * rows, grid, step)

    def _resized(self, frames: Sequence[np.ndarray], height: int, width: int) -> list[np.ndarray]:
        """Whole groups of frames: the last is repeated."""
        resample = int(self._video.get("resample", images.BICUBIC))
        resized = [images.resized(frame, height, width, resample) for frame in frames]
        return resized + [resized[-1]] * (-len(resized) % self._frames)

    def _cut(self, frames: Sequence[np.ndarray]) -> tuple[tuple[int, int, int], dict[str, np.ndarray]]:
        """How many times, lines and columns of rows there are, and their arrays."""
        cut = [images.patches(frame, self._patch_size, self._merge) for frame in frames]
        places = cut[0][1]
        # Of each patch the channels one after the other, and of a channel the frames.
        channels = np.stack([found for found, _ in cut]).reshape(-1, self._frames, len(places), 3, self._patch_size**2)
        patches = channels.transpose(0, 2, 3, 1, 4).reshape(len(channels), len(places), -1)
        lines, columns = (int(count) // self._merge for count in places.max(0) + 1)
        return (len(patches), lines, columns), self._arrays(patches, places, self._video_levels)

    def _frame_size(self, height: int, width: int, count: int, options: Mapping[str, Any]) -> tuple[int, int]:
        if not self._video.get("do_resize", True):
            return height, width
        size, factor = self._video.get("size") or {}, self._patch_size * self._merge
        least = options.get("min_pixels") or self._video.get("min_pixels") or size.get("shortest_edge")
        most = options.get("max_pixels") or self._video.get("max_pixels") or size.get("longest_edge")
        least, most = least or _LEAST * factor**2, most or _MOST * factor**2
        if options.get("detail") == "low":
            most = max(least, most // 4)
        if self._video.get("cap_pixels_per_frame"):
            most = self._capped(count, least, most, factor)
        if self._tells_times:
            height, width = self._size_of_all(height, width, count, least, most)
        else:
            height, width = self._size(height, width, least, most)
        if height * width * count > _MOST_IN_ALL:
            raise InvalidRequest(
                f"A video of {count} frames of {width} x {height} has more than {_MOST_IN_ALL} pixels. Take fewer "
                "frames (media_io_kwargs: video.num_frames) or smaller ones (mm_processor_kwargs: max_pixels).",
                "video",
            )
        return height, width

    def _capped(self, count: int, least: int, most: int, factor: int) -> int:
        """The bound with a share of what all frames may cost."""
        if self._tells_times:
            share = min(int(self._video.get("max_video_tokens", 768)) * factor**2, most // count)
            return max(share, int(least * 1.05)) * count
        whole = int(int(self._video.get("max_video_tokens", 128_000)) * factor**2 * 0.9)
        return max(min(most, whole * self._frames // count), int(least * 1.05))

    def _size_of_all(self, height: int, width: int, count: int, least: int, most: int) -> tuple[int, int]:
        """The bounds are those of the pixels of all frames."""
        factor = self._patch_size * self._merge
        if height < factor or width < factor:
            scale = max(factor / height, factor / width)
            height, width = int(height * scale), int(width * scale)
        self._check_ratio(height, width)
        new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
        whole = max(1, round(count / self._frames)) * self._frames * new_height * new_width
        if whole > most:
            beta = math.sqrt(count * height * width / most)
            new_height = max(factor, math.floor(height / beta / factor) * factor)
            new_width = max(factor, math.floor(width / beta / factor) * factor)
        elif whole < least:
            beta = math.sqrt(least / (count * height * width))
            new_height = math.ceil(height * beta / factor) * factor
            new_width = math.ceil(width * beta / factor) * factor
        self._check_sides(new_height, new_width)
        return new_height, new_width
