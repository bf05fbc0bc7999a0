"""Videos before towers that know of time, against transformers in float32, on the tiny random models of `test_towers`.

transformers' video processors need torchvision: what they do is written here in plain words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.tower_cases import IMAGE
from models.towers import Case
from octavo.base.errors import InvalidRequest
from octavo.base.media import MediaItem, PreparedMedia, place_media
from octavo.text.media.files import video_settings
from octavo.text.media.qwen_video import QwenVideoProcessor
from octavo.text.media.table import media_processor
from support.pictures import pixels

VIDEO = 91
NAMES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
#: Of the video processor; of Qwen3-VL the bounds are those of all frames.
BOUNDS = {"qwen2-vl": (64, 1024), "qwen2.5-vl": (64, 1024), "qwen3-vl": (256, 4096)}


class VideoCase(Case):
    def __init__(self, path: Path, name: str) -> None:
        super().__init__(path, name)
        self.name = name
        config = self.model.config
        config.video_token_id = VIDEO
        least, most = BOUNDS[name]
        self.video = {"size": {"shortest_edge": least, "longest_edge": most}}
        written = config.to_dict() | {"architectures": [f"{self.family}ForConditionalGeneration"]}
        found = media_processor(written, self.settings, lambda text: None, self.video)
        assert isinstance(found, QwenVideoProcessor)
        self.processor = found

    def tokens_of_video(self, media: PreparedMedia) -> list[int]:
        """Its placeholders, and one token for what stands between two runs of them."""
        ids: list[int] = []
        runs = media.text.split("<|video_pad|>")
        for number, between in enumerate(runs):
            ids += [20 + sum(between.encode()) % 40] if between else []
            ids += [VIDEO] if number < len(runs) - 1 else []
        return ids

    def expected_logprobs(
        self, ids: list[int], images: Sequence[np.ndarray], videos: Sequence[tuple[list[np.ndarray], float]]
    ) -> torch.Tensor:
        """`videos`: frames, and seconds of all."""
        values: dict[str, Any] = self.inputs(images) if images else {}
        parts, grids = zip(*[self.reference(frames) for frames, _ in videos], strict=True)
        values |= {"pixel_values_videos": torch.cat(parts), "video_grid_thw": torch.tensor(grids)}
        if self.name == "qwen2.5-vl":
            values["second_per_grid_ts"] = torch.tensor([2 / (len(frames) / seconds) for frames, seconds in videos])
        values["mm_token_type_ids"] = torch.tensor([[{IMAGE: 1, VIDEO: 2}.get(token, 0) for token in ids]])
        with torch.no_grad():
            logits = self.model(input_ids=torch.tensor([ids]), **values).logits[0]
        return logits.float().log_softmax(-1)

    def reference(self, frames: list[np.ndarray]) -> tuple[torch.Tensor, list[int]]:
        height, width = self.size(len(frames), *frames[0].shape[:2])
        shown = [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames
        ]
        shown += [shown[-1]] * (len(shown) % 2)
        half = self.name == "qwen3-vl"
        mean = [0.5] * 3 if half else [0.48145466, 0.4578275, 0.40821073]
        std = [0.5] * 3 if half else [0.26862954, 0.26130258, 0.27577711]
        video = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2) / 255
        video = (video - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        times, lines, columns = len(shown) // 2, height // 4, width // 4
        cut = video.view(times, 2, 3, lines // 2, 2, 4, columns // 2, 2, 4)
        return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(times * lines * columns, -1), [times, lines, columns]

    def size(self, count: int, height: int, width: int) -> tuple[int, int]:
        least, most = BOUNDS[self.name]
        of_all = 1
        if self.name == "qwen3-vl":
            of_all = count
            if min(height, width) < 8:
                scale = max(8 / height, 8 / width)
                height, width = int(height * scale), int(width * scale)
        high, wide = round(height / 8) * 8, round(width / 8) * 8
        whole = high * wide * (round(count / 2) * 2 if of_all > 1 else 1)
        if whole > most:
            beta = math.sqrt(of_all * height * width / most)
            return max(8, math.floor(height / beta / 8) * 8), max(8, math.floor(width / beta / 8) * 8)
        if whole < least:
            beta = math.sqrt(least / (of_all * height * width))
            return math.ceil(height * beta / 8) * 8, math.ceil(width * beta / 8) * 8
        return high, wide


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoCase:
    return VideoCase(tmp_path_factory.mktemp("tower"), request.param)


def film(count: int, height: int, width: int, seed: int) -> list[np.ndarray]:
    return [pixels(height, width, seed + number) for number in range(count)]


#: Frames, and for how many seconds they are shown.
VIDEOS = [(film(5, 30, 20, 10), 6.5), (film(2, 16, 24, 30), 1.0)]


def prompt(case: VideoCase, videos: Any = VIDEOS) -> tuple[list[int], tuple[MediaItem, ...], list[np.ndarray]]:
    """Text, a picture, and videos."""
    image = pixels(30, 20, 1)
    picture = case.processor.image(image, {})
    films = [shown(case, *video) for video in videos]
    ids = [
        3,
        4,
        5,
        *case.tokens(picture),
        8,
        *case.tokens_of_video(films[0]),
        9,
        10,
        *case.tokens_of_video(films[-1]),
        11,
    ]
    items = (*place_media(ids, IMAGE, [picture]), *place_media(ids, VIDEO, films))
    return [*ids, 12], tuple(sorted(items, key=lambda item: item.offset)), [image]


def shown(case: VideoCase, frames: list[np.ndarray], seconds: float) -> PreparedMedia:
    assert isinstance(case.processor, QwenVideoProcessor)
    times = [number * seconds / len(frames) for number in range(len(frames))]
    return case.processor.video(frames, times, seconds, {})


def test_a_prompt_with_videos_is_scored_as_transformers_scores_it(case: VideoCase) -> None:
    ids, media, images = prompt(case)
    found, tokens = case.reply(ids, media)
    logprobs = case.expected_logprobs(ids, images, VIDEOS)
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
    assert tokens[0] == int(logprobs[-1].argmax())


def test_a_video_in_chunks_is_the_same_bit_for_bit(case: VideoCase) -> None:
    ids, media, _ = prompt(case)
    whole = case.reply(ids, media)
    assert case.reply(ids, media, max_num_batched_tokens=7, max_num_prefill_tokens=7) == whole
    assert case.reply(ids, media, media_step_rows=1, media_cache_rows=1) == whole


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 100), (6, 5)])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_processor_shows_what_transformers_shows(case: VideoCase, size: tuple[int, int], count: int) -> None:
    if count == 1 and case.name == "qwen3-vl":
        pytest.skip("the reference takes no single frame")
    frames = film(count, *size, 3)
    values, grid = case.reference(frames)
    media = shown(case, frames, 1.0)
    patches, levels = (
        np.frombuffer(media.tensors[name].data, media.tensors[name].dtype).reshape(media.tensors[name].shape)
        for name in ("patches", "levels")
    )
    seen = np.stack([levels[c][patches.reshape(*patches.shape[:2], 3, -1)[:, :, c]] for c in range(3)], 2)
    if case.name == "qwen2.5-vl":  # whose patches stand in the order of its windows
        order = np.frombuffer(media.tensors["order"].data, np.int32)
        seen = seen.reshape(len(order), -1)[order]
    np.testing.assert_allclose(seen.reshape(len(values), -1), values.numpy(), atol=1e-6)
    assert media.grid == (grid[0], grid[1] // 2, grid[2] // 2)
    assert media.rows == grid[0] * grid[1] * grid[2] // 4 == media.text.count("<|video_pad|>")


@pytest.mark.parametrize("case", ["qwen3-vl"], indirect=True)
def test_times_stand_in_the_text(case: VideoCase) -> None:
    assert isinstance(case.processor, QwenVideoProcessor)
    frames = film(3, 8, 8, 3)
    media = case.processor.video(frames, [0.0, 0.52, 4.0], 5.0, {})
    rows = "<|video_pad|>" * (media.rows // 2)
    assert media.text == "".join(
        f"<{told} seconds><|vision_start|>{rows}<|vision_end|>" for told in ("0.3", "4.0")
    )  # of two frames the middle, of an odd one itself
    assert case.processor.video(frames, None, 0.0, {}).text.startswith("<0.2 seconds>")  # two frames a second
    assert case.processor.video(frames, [0.0, 1.0, 2.0], 3.0, {"fps": 0.5}).text.startswith("<1.0 seconds>")


@pytest.mark.parametrize("case", ["qwen2.5-vl"], indirect=True)
def test_positions_follow_the_seconds(case: VideoCase) -> None:
    assert isinstance(case.processor, QwenVideoProcessor)
    frames = film(4, 8, 8, 3)
    assert case.processor.video(frames, [0.0, 1.0, 2.0, 3.0], 4.0, {}).time_step == 4 * 2  # four positions a second
    assert case.processor.video(frames, None, 0.0, {}).time_step == 4
    slow, fast = (case.processor.video(frames, None, 0.0, {"fps": rate}) for rate in (1, 8))
    assert (slow.time_step, fast.time_step) == (8, 1) and slow.digest != fast.digest


def test_what_no_video_can_be_is_refused(case: VideoCase) -> None:
    assert isinstance(case.processor, QwenVideoProcessor)
    with pytest.raises(InvalidRequest, match="one size"):
        case.processor.video([pixels(8, 8, 1), pixels(8, 16, 1)], None, 0.0, {})
    with pytest.raises(InvalidRequest, match="200 times"):
        case.processor.video(film(2, 1, 300, 1), None, 0.0, {})
    with pytest.raises(InvalidRequest, match=r"no option `fps` with this value"):
        case.processor.video(film(2, 8, 8, 1), None, 0.0, {"fps": 0})
    if case.name == "qwen3-vl":  # whose bounds are those of all frames
        return
    with pytest.raises(InvalidRequest, match="Take fewer frames"):
        case.processor.video(film(2, 80, 80, 1) * 200, None, 0.0, {"min_pixels": 10**7, "max_pixels": 12 * 10**6})


def test_settings_of_videos_are_read_from_the_newest_file() -> None:
    newer, video, older = {"video_processor": {"a": 1}}, {"a": 2}, {"a": 3}
    assert video_settings(newer, video, older) == {"a": 1}
    assert video_settings({}, video, older) == video
    assert video_settings(None, None, older) == older
