"""Processors of Llama 3.2 with its vision and of Llama 4 make the tiles that the family's own make."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.text.media.table import media_processor
from support.pictures import IDS, array, pictures, pixels


def mllama(**settings: Any) -> Any:
    config = {
        "architectures": ["MllamaForConditionalGeneration"], "image_token_index": 5,
        "vision_config": {"image_size": 16, "patch_size": 4, "max_num_tiles": 4},
    }  # fmt: skip
    return media_processor(config, {"size": {"height": 16, "width": 16}, "max_image_tiles": 4} | settings, IDS.get)


@pytest.mark.parametrize(
    "size", [(16, 16), (30, 20), (5, 40), (40, 40), (100, 10), (17, 33), (64, 16), (7, 100), (32, 32)]
)
def test_mllama_sees_what_transformers_shows_it(size: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.mllama.image_processing_pil_mllama")
    reference = module.MllamaImageProcessorPil(size={"height": 16, "width": 16}, max_image_tiles=4)
    expected = reference([[pixels(*size)]], return_tensors="np")
    (count,) = expected["num_tiles"][0]
    media = mllama().image(pixels(*size), {})
    assert np.array_equal(pictures(media, 4, 16), expected["pixel_values"][0, 0, :count])
    assert not expected["pixel_values"][0, 0, count:].any()
    assert array(media.tensors["ratio"]).tolist() == expected["aspect_ratio_ids"][0].tolist()
    assert (media.rows, media.text) == (1, "<|image|>")


def test_mllama_has_one_tile_for_low_detail_and_refuses_what_it_does_not_know() -> None:
    media = mllama().image(pixels(40, 40), {"detail": "low"})
    assert media.tensors["patches"].shape == (1, 16, 48) and array(media.tensors["ratio"]).tolist() == [1]
    with pytest.raises(InvalidRequest, match="no option `max_image_tiles`"):
        mllama().image(pixels(40, 40), {"max_image_tiles": 2})
    for wrong, told in (
        ({"size": {"height": 32, "width": 32}}, "the tower sees 16 x 16"),
        ({"max_image_tiles": 9}, "makes 9 tiles, and the tower sees 4"),
        ({"do_pad": False}, "`do_pad` is false"),
    ):
        with pytest.raises(CheckpointError, match=told):
            mllama(**wrong)


def llama4(**settings: Any) -> Any:
    config = {
        "architectures": ["Llama4ForConditionalGeneration"], "image_token_index": 5,
        "vision_config": {"image_size": 16, "patch_size": 4, "pixel_shuffle_ratio": 0.5},
    }  # fmt: skip
    return media_processor(config, {"size": {"height": 16, "width": 16}} | settings, IDS.get)


def llama4_tiles(image: np.ndarray, most: int) -> tuple[tuple[int, int], np.ndarray]:
    """What Llama 4's processor does, in the order of its code, with Pillow in torchvision's place: the grid, and
    float32 [tiles, 3, 16, 16]."""
    torch = pytest.importorskip("torch")
    height, width = image.shape[:2]
    sizes = torch.tensor([(16 * h, 16 * w) for h in range(1, most + 1) for w in range(1, most + 1) if h * w <= most])
    scales = torch.minimum(sizes[:, 0] / height, sizes[:, 1] / width)
    best = scales[scales >= 1].min() if (scales >= 1).any() else scales.max()
    high, wide = min(sizes[scales == best].tolist(), key=lambda size: size[0] * size[1])
    room = min(max(height, 16), high), min(max(width, 16), wide)
    if room[1] / width < room[0] / height:
        size = min(int(height * (room[1] / width)), room[0]), room[1]
    else:
        size = room[0], min(int(width * (room[0] / height)), room[1])

    def resized(to: tuple[int, int]) -> np.ndarray:
        return np.asarray(Image.fromarray(image).resize((max(to[1], 1), max(to[0], 1)), Image.Resampling.BILINEAR))

    canvas = np.zeros((high, wide, 3), np.uint8)
    found = resized(size)
    canvas[: found.shape[0], : found.shape[1]] = found
    tiles = list(canvas.reshape(high // 16, 16, wide // 16, 16, 3).swapaxes(1, 2).reshape(-1, 16, 16, 3))
    tiles += [resized((16, 16))] if len(tiles) > 1 else []
    values = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).to(torch.bfloat16) * (1 / 255)
    return (high // 16, wide // 16), ((values - 0.5) / 0.5).float().numpy()


@pytest.mark.parametrize(
    "size", [(16, 16), (30, 20), (5, 40), (40, 40), (100, 10), (17, 33), (64, 16), (7, 100), (90, 80)]
)
def test_llama4_sees_what_its_processor_shows_it(size: tuple[int, int]) -> None:
    (lines, columns), expected = llama4_tiles(pixels(*size), 16)
    media = llama4().image(pixels(*size), {})
    assert np.array_equal(pictures(media, 4, 16, 2), expected)
    tile = "<|patch|>" * 4
    line = "<|tile_x_separator|>".join([tile] * columns) + "<|tile_y_separator|>"
    of_tiles = line * lines if lines * columns > 1 else ""
    assert media.text == f"<|image_start|>{of_tiles}<|image|>{tile}<|image_end|>"
    assert media.rows == 4 * len(expected) == media.text.count("<|patch|>")


def test_llama4_has_fewer_tiles_where_it_is_asked_and_refuses_what_it_does_not_know() -> None:
    for options, count in (({"detail": "low"}, 1), ({"max_patches": 2}, 3), ({}, 7)):
        assert llama4().image(pixels(48, 30), options).tensors["patches"].shape[0] == count
    for wrong in ({"max_patches": 0}, {"max_patches": 65}, {"resize_to_max_canvas": True}):
        with pytest.raises(InvalidRequest, match="has no option"):
            llama4().image(pixels(48, 48), wrong)
    with pytest.raises(CheckpointError, match="`resize_to_max_canvas` is not implemented"):
        llama4(resize_to_max_canvas=True)
