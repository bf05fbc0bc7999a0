"""Processors of pictures make the arrays that transformers' own make, those that resize with Pillow, bit by bit."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.media import place_media
from octavo.text.media.table import media_processor
from support.pictures import IDS, array, pictures, pixels, square


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (28, 28), (20, 90), (7, 5)])
@pytest.mark.parametrize(
    "settings", [{}, {"do_pad": True}, {"do_resize": False}], ids=["cut", "squared", "not resized"]
)
def test_llava_sees_what_transformers_shows_it(size: tuple[int, int], settings: dict[str, Any]) -> None:
    llava = pytest.importorskip("transformers.models.llava.image_processing_pil_llava")
    reference = llava.LlavaImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, **settings
    )
    expected = np.asarray(reference(pixels(*size), return_tensors="np")["pixel_values"][0])
    media = square(**settings).image(pixels(*size), {})
    assert np.array_equal(pictures(media, 14, 28)[0], expected)
    assert (media.rows, media.text, media.kind) == (4, "<image>" * 4, "image")


def test_a_vocabulary_without_a_token_for_pictures_has_another_in_its_place() -> None:
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "vision_config": {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14},
    }  # fmt: skip
    processor = media_processor(config, {}, {"<unk>": 7}.get)
    assert processor is not None and (processor.placeholder, processor.placeholder_id) == ("<image>", 7)
    assert processor.image(pixels(40, 60), {}).text == "<unk>" * 4


def idefics3(**settings: Any) -> Any:
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"], "image_token_id": 5, "scale_factor": 2,
        "vision_config": {"image_size": 16, "patch_size": 4, "model_type": "smolvlm_vision"},
    }  # fmt: skip
    sizes = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
    return media_processor(config, sizes | settings, IDS.get)


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 100)])
@pytest.mark.parametrize("splits", [True, False], ids=["tiles", "whole"])
def test_idefics3_sees_what_transformers_shows_it(size: tuple[int, int], splits: bool) -> None:
    module = pytest.importorskip("transformers.models.idefics3.image_processing_pil_idefics3")
    sizes = {"size": {"longest_edge": 48}, "max_image_size": {"longest_edge": 16}}
    reference = module.Idefics3ImageProcessorPil(**sizes, do_image_splitting=splits, return_row_col_info=True)
    found = reference(pixels(*size), return_tensors="np")
    media = idefics3(do_image_splitting=splits).image(pixels(*size), {})
    assert np.array_equal(pictures(media, 4, 16, 2), np.asarray(found["pixel_values"][0]))
    rows, columns = found["rows"][0][0], found["cols"][0][0]
    assert media.rows == 4 * (rows * columns + 1) == media.text.count("<image>")
    assert media.text.count("<row_") == rows * columns and media.text.count("\n") == (rows + 1 if rows else 0)


def qwen2_vl(**settings: Any) -> Any:
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"], "image_token_id": 5,
        "vision_config": {"patch_size": 4, "spatial_merge_size": 2},
    }  # fmt: skip
    return media_processor(config, {"min_pixels": 128, "max_pixels": 2048} | settings, IDS.get)


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 100), (6, 5)])
def test_qwen2_vl_sees_what_transformers_shows_it(size: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    reference = module.Qwen2VLImageProcessorPil(patch_size=4, min_pixels=128, max_pixels=2048)
    found = reference(pixels(*size), return_tensors="np")
    media = qwen2_vl().image(pixels(*size), {})
    values, levels = array(media.tensors["patches"])[0], array(media.tensors["levels"])
    seen = np.stack([levels[c][values.reshape(len(values), 3, 16)[:, c]] for c in range(3)], 1)
    assert np.array_equal(np.repeat(seen[:, :, None], 2, 2).reshape(len(values), -1), found["pixel_values"])
    lines, columns = (found["image_grid_thw"][0, 1:] // 2).tolist()
    assert media.grid == (1, lines, columns) and media.rows == lines * columns


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 100), (6, 5), (5, 500)])
def test_glm4v_sees_what_transformers_shows_it(size: tuple[int, int]) -> None:
    module = pytest.importorskip("transformers.models.glm4v.image_processing_pil_glm4v")
    bounds = {"size": {"shortest_edge": 256, "longest_edge": 4096}}
    reference = module.Glm4vImageProcessorPil(patch_size=4, **bounds)
    config = {
        "architectures": ["Glm4vForConditionalGeneration"], "image_token_id": 5,
        "vision_config": {"patch_size": 4, "spatial_merge_size": 2, "image_size": 16},
    }  # fmt: skip
    processor = media_processor(config, bounds, IDS.get)
    assert processor is not None
    media = processor.image(pixels(*size), {})
    found = reference(pixels(*size), return_tensors="np")
    values, levels = array(media.tensors["patches"])[0], array(media.tensors["levels"])
    seen = np.stack([levels[c][values.reshape(len(values), 3, 16)[:, c]] for c in range(3)], 1)
    assert np.array_equal(np.repeat(seen[:, :, None], 2, 2).reshape(len(values), -1), found["pixel_values"])
    assert media.grid == (1, *(found["image_grid_thw"][0, 1:] // 2).tolist())
    assert media.text == "<|image|>" * media.rows


def test_qwen2_vl_looks_as_closely_as_it_is_asked_to() -> None:
    processor = qwen2_vl()
    whole, low, few = (
        processor.image(pixels(80, 80), options).rows for options in ({}, {"detail": "low"}, {"max_pixels": 100})
    )
    assert whole > low > few
    with pytest.raises(InvalidRequest, match="200 times"):
        processor.image(pixels(1, 300), {})


GRIDS = [[16, 32], [32, 16], [32, 32], [48, 16]]
#: By architecture: configuration, settings, transformers' processor, its arguments, patches along a side of a row.
TILED: dict[str, tuple[dict[str, Any], dict[str, Any], str, dict[str, Any], int]] = {
    "LlavaNextForConditionalGeneration": (
        {"vision_config": {"model_type": "clip_vision_model", "image_size": 16, "patch_size": 4}},
        {
            "size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "image_grid_pinpoints": GRIDS,
        },
        "llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil", {}, 1,
    ),
    "InternVLForConditionalGeneration": (
        {"vision_config": {"image_size": [16, 16], "patch_size": [4, 4]}},
        {"size": {"height": 16, "width": 16}},
        "got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil", {"crop_to_patches": True}, 2,
    ),
    "Gemma3ForConditionalGeneration": (
        {"vision_config": {"image_size": 16, "patch_size": 4}, "mm_tokens_per_image": 4},
        {"size": {"height": 16, "width": 16}},
        "gemma3.image_processing_pil_gemma3.Gemma3ImageProcessorPil", {}, 2,
    ),
    "PaliGemmaForConditionalGeneration": (
        {"vision_config": {"image_size": 16, "patch_size": 4}},
        {"size": {"height": 16, "width": 16}},
        "siglip.image_processing_pil_siglip.SiglipImageProcessorPil", {}, 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 100), (31, 33)])
@pytest.mark.parametrize("name", TILED)
def test_squares_are_those_that_transformers_shows(name: str, size: tuple[int, int]) -> None:
    config, settings, place, options, merge = TILED[name]
    module, _, made = place.rpartition(".")
    reference = getattr(pytest.importorskip(f"transformers.models.{module}"), made)(**settings, **options)
    expected = np.asarray(reference(pixels(*size), return_tensors="np")["pixel_values"])
    processor = media_processor({"architectures": [name], "image_token_id": 5, **config}, settings, IDS.get)
    assert processor is not None
    media = processor.image(pixels(*size), {})
    found = pictures(media, 4, 16, merge)
    assert np.array_equal(found, expected.reshape(-1, 3, 16, 16)[: len(found)])
    assert media.text.count(getattr(processor, "row_text", processor.placeholder)) == media.rows


PAN_AND_SCAN = {
    "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}  # fmt: skip


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 21), (31, 33), (7, 12)])
@pytest.mark.parametrize("by_request", [True, False])
def test_gemma3_pans_and_scans_as_transformers_does(size: tuple[int, int], by_request: bool) -> None:
    module = pytest.importorskip("transformers.models.gemma3.image_processing_pil_gemma3")
    config, settings, *_ = TILED["Gemma3ForConditionalGeneration"]
    reference = module.Gemma3ImageProcessorPil(**settings, **PAN_AND_SCAN)(pixels(*size), return_tensors="np")
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "image_token_id": 5, **config}
    processor = media_processor(config, settings if by_request else {**settings, **PAN_AND_SCAN}, IDS.get)
    assert processor is not None
    media = processor.image(pixels(*size), PAN_AND_SCAN if by_request else {})
    assert np.array_equal(pictures(media, 4, 16, 2), np.asarray(reference["pixel_values"]))
    one, count = f"\n\n<start_of_image>{'<image_soft_token>' * 4}<end_of_image>\n\n", int(reference["num_crops"][0])
    crops = " ".join([one] * count)
    told = f"Here is the original image {one} and here are some crops to help you see better {crops}"
    assert media.text == (told if count else one)
    whole = processor.image(pixels(*size), {"detail": "low", **(PAN_AND_SCAN if by_request else {})})
    assert whole.text == one and len(array(whole.tensors["patches"])) == 1


@pytest.mark.parametrize(
    "options", [{"do_pan_and_scan": 1}, {"pan_and_scan_max_num_crops": 1}, {"pan_and_scan_min_ratio_to_activate": 0.5}]
)
def test_gemma3_pans_and_scans_within_bounds(options: dict[str, Any]) -> None:
    config, settings, *_ = TILED["Gemma3ForConditionalGeneration"]
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "image_token_id": 5, **config}
    processor = media_processor(config, settings, IDS.get)
    assert processor is not None
    with pytest.raises(InvalidRequest, match="no option"):
        processor.image(pixels(40, 60), options)


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (7, 300), (6, 5)])
@pytest.mark.parametrize("merge", [1, 2])
def test_pixtral_sees_what_transformers_shows_it(size: tuple[int, int], merge: int) -> None:
    module = pytest.importorskip("transformers.models.pixtral.image_processing_pil_pixtral")
    side = {"height": 4 * merge, "width": 4 * merge}
    reference = module.PixtralImageProcessorPil(size={"longest_edge": 48}, patch_size=side)
    found = reference(pixels(*size), return_tensors="np")
    config = {
        "architectures": ["Mistral3ForConditionalGeneration"], "image_token_id": 5, "spatial_merge_size": merge,
        "vision_config": {"patch_size": 4},
    }  # fmt: skip
    processor = media_processor(config, {"size": {"longest_edge": 48}}, IDS.get)
    assert processor is not None
    media = processor.image(pixels(*size), {})
    high, wide = found["image_sizes"][0]
    values, places = array(media.tensors["patches"])[0], array(media.tensors["positions"])[:, 0]
    levels, shown = array(media.tensors["levels"]), found["pixel_values"][0]
    for patch, (line, column) in zip(values.reshape(-1, 3, 4, 4), places.T * 4, strict=True):
        seen = np.stack([levels[c][patch[c]] for c in range(3)])
        assert np.array_equal(seen, shown[:, line : line + 4, column : column + 4])
    lines, columns = high // (4 * merge), wide // (4 * merge)
    assert media.rows == lines * columns
    assert media.text == "[IMG_BREAK]".join(["[IMG]" * columns] * lines) + "[IMG_END]"


@pytest.mark.parametrize("size", [(40, 60), (61, 35), (16, 16), (9, 90), (100, 100), (31, 33), (64, 64)])
@pytest.mark.parametrize("mode", ["16x", "4x"])
def test_minicpm_v_sees_what_transformers_shows_it(size: tuple[int, int], mode: str) -> None:
    name = "transformers.models.minicpmv4_6"
    module = pytest.importorskip(f"{name}.image_processing_pil_minicpmv4_6")
    processing = pytest.importorskip(f"{name}.processing_minicpmv4_6")
    settings = {"scale_resolution": 32, "patch_size": 4, "downsample_mode": mode}
    found = module.MiniCPMV4_6ImageProcessorPil(**settings)(pixels(*size), return_tensors="np")
    config = {
        "architectures": ["MiniCPMV4_6ForConditionalGeneration"], "image_token_id": 5, "downsample_mode": mode,
        "vision_config": {"image_size": 28, "patch_size": 4},
    }  # fmt: skip
    processor = media_processor(config, settings, IDS.get)
    assert processor is not None
    media = processor.image(pixels(*size), {})
    values, levels = array(media.tensors["patches"])[0], array(media.tensors["levels"])
    seen = np.stack([levels[c][values.reshape(len(values), 3, 16)[:, c]] for c in range(3)], 1).reshape(len(values), -1)
    shown = found["pixel_values"][0].reshape(3, 4, -1, 4).transpose(2, 0, 1, 3).reshape(len(values), -1)
    counts = found["target_sizes"].prod(-1).tolist()
    assert array(media.tensors["lens"]).tolist() == counts
    for ours, theirs in zip(
        np.split(seen, np.cumsum(counts)[:-1]), np.split(shown, np.cumsum(counts)[:-1]), strict=True
    ):
        assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    marks = {
        "image_start_token": "<image>", "image_end_token": "</image>", "slice_start_token": "<slice>",
        "slice_end_token": "</slice>", "image_token": "<|image_pad|>", "slice_mode": True,
    }  # fmt: skip
    text = processing.MiniCPMV4_6Processor.replace_image_token(
        types.SimpleNamespace(**marks), found, 0, image_token_divisor=16 if mode == "16x" else 4
    )
    assert media.text == f"<image_id>{{n}}</image_id>{text}"
    assert media.text.count("<|image_pad|>") == media.rows
    assert "<slice>" not in processor.image(pixels(*size), {"detail": "low"}).text


def test_positions_follow_the_patches_in_their_squares() -> None:
    media = idefics3(do_image_splitting=False).image(pixels(20, 20), {})
    assert array(media.tensors["positions"]).tolist() == [[0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]]


def test_low_detail_is_the_whole_picture_alone() -> None:
    processor = idefics3()
    assert processor.image(pixels(40, 60), {"detail": "low"}).rows == 4
    assert processor.image(pixels(40, 60), {"detail": "high"}).rows > 4
    assert processor.image(pixels(40, 60), {"do_image_splitting": False}).rows == 4
    assert processor.image(pixels(40, 60), {"size": {"longest_edge": 16}}).rows == 4


@pytest.mark.parametrize("options", [{"size": {"longest_edge": 10**6}}, {"size": 3}, {"crop": 1}])
def test_options_that_nobody_has_are_refused(options: dict[str, Any]) -> None:
    for processor in (square(), idefics3(), qwen2_vl()):
        with pytest.raises(InvalidRequest, match="option"):
            processor.image(pixels(20, 20), options)


def test_equal_pictures_are_equal_items_and_others_are_not() -> None:
    first, same = (square().image(pixels(40, 40), {}) for _ in range(2))
    assert first.digest == same.digest
    assert first.digest != square().image(pixels(40, 40, 1), {}).digest
    assert first.digest != square(image_mean=[0.1, 0.2, 0.3]).image(pixels(40, 40), {}).digest


def test_rows_are_placed_in_the_order_of_the_placeholders() -> None:
    media = [square().image(pixels(30, 30, seed), {}) for seed in range(2)]
    first, second = place_media([1, 5, 5, 2, 5, 5, 9, 5, 5, 5, 5, 3], 5, media)
    assert (first.spans, first.offset, first.end, first.rows) == (((1, 2), (4, 2)), 1, 6, 4)
    assert second.spans == ((7, 4),)
    with pytest.raises(ValueError, match="9 placeholder"):
        place_media([5] * 9, 5, media)
