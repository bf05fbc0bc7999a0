"""Towers of models for which transformers has no class, against what their descriptions say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.harness import Engine
from models.tower_cases import IMAGE
from models.towers import Case
from octavo.base.errors import CheckpointError, InvalidRequest
from octavo.models.registry import model_spec
from octavo.models.vision import phi3_v
from octavo.text.media.minicpm_v import SlicingProcessor
from octavo.text.media.phi3_v import Phi3VProcessor
from octavo.text.media.table import media_processor
from support import tiny_minicpm_v, tiny_phi3_v
from support.pictures import pixels


class Phi3VCase(Case):
    num_crops = 5

    def __init__(self, path: Path) -> None:
        self.model = tiny_phi3_v.TinyPhi3V(path)
        self.family = "Phi3V"
        self.path, self.engine = path, Engine(path)
        self.processor = Phi3VProcessor(
            {"num_crops": self.num_crops}, placeholder_id=IMAGE, row_text="<|image|>", opening="<s>",
            side=tiny_phi3_v.SIDE, patch_size=tiny_phi3_v.PATCH,
        )  # fmt: skip

    def expected(self, ids: list[int], images: Sequence[np.ndarray]) -> torch.Tensor:
        return self.model.logits(ids, IMAGE, images, self.num_crops).log_softmax(-1)


@pytest.fixture(scope="module")
def phi3_v_case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        for key, value in tiny_phi3_v.CLIP.items():
            patch.setitem(phi3_v.CLIP, key, value)
        yield Phi3VCase(tmp_path_factory.mktemp("phi3_v"))


class MiniCPMVCase(Case):
    def __init__(self, path: Path, version: str) -> None:
        self.model = tiny_minicpm_v.TinyMiniCPMV(path, version)
        self.family = "MiniCPMV"
        self.path, self.engine = path, Engine(path)
        self.processor = SlicingProcessor(
            {"scale_resolution": tiny_minicpm_v.SCALE}, placeholder="(<image>./</image>)", placeholder_id=IMAGE,
            row_text="<unk>", patch_size=tiny_minicpm_v.PATCH, image_size=tiny_minicpm_v.VISION["image_size"],
            merges=0, num_queries=tiny_minicpm_v.QUERIES,
        )  # fmt: skip

    def expected(self, ids: list[int], images: Sequence[np.ndarray]) -> torch.Tensor:
        return self.model.logits(ids, IMAGE, images).log_softmax(-1)


@pytest.fixture(scope="module")
def minicpm_v_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return MiniCPMVCase(tmp_path_factory.mktemp("minicpm_v"), "2.6")


@pytest.fixture(scope="module")
def minicpm_v_old_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return MiniCPMVCase(tmp_path_factory.mktemp("minicpm_v_old"), "2.5")


@pytest.fixture(params=["phi3_v", "minicpm_v", "minicpm_v_old"])
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.getfixturevalue(f"{request.param}_case")
    return found


@pytest.mark.parametrize("sizes", [[(30, 20), (16, 16)], [(9, 60)], [(70, 11), (40, 41), (16, 64)]])
def test_a_prompt_with_pictures_is_scored_as_described(case: Case, sizes: list[tuple[int, int]]) -> None:
    images = [pixels(*size, number) for number, size in enumerate(sizes)]
    case.check_scored(images)


def test_a_picture_in_chunks_is_the_same_bit_for_bit(case: Case) -> None:
    ids, media = case.prompt([pixels(30, 20, 1), pixels(40, 40, 2)])
    whole = case.reply(ids, media)
    assert case.reply(ids, media, max_num_batched_tokens=7, max_num_prefill_tokens=7) == whole
    assert case.reply(ids, media, media_step_rows=1, media_cache_rows=1) == whole


def test_prompts_give_the_same_alone_and_in_company(case: Case) -> None:
    case.company()


def test_phi3_v_asks_for_as_many_tokens_as_its_description_says() -> None:
    ids = {"<|image|>": 7}
    config = {"architectures": ["Phi3VForCausalLM"]}
    processor = media_processor(config, {"num_crops": 4}, ids.get)
    assert processor is not None
    for size, lines, columns in (((300, 300), 2, 2), ((200, 700), 1, 3), ((2000, 500), 4, 1)):
        rows = processor.image(pixels(*size, 0), {}).rows
        assert rows == (lines * columns + 1) * 144 + 1 + (lines + 1) * 12
    assert processor.image(pixels(300, 300, 0), {"detail": "low"}).rows == 2 * 144 + 1 + 2 * 12
    with pytest.raises(InvalidRequest, match="num_crops"):
        processor.image(pixels(30, 30, 0), {"num_crops": 1000})
    assert media_processor(config, {}, {}.get) is None  # a vocabulary without a token for rows


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("img_processor", "layer_idx", -1), ("img_processor", "name", "siglip"),
        ("embd_layer", "hd_transform_order", "glb_sub"), ("embd_layer", "projection_cls", "linear"),
        ("embd_layer", "use_hd_transform", None), ("embd_layer", "with_learnable_separator", False),
    ],
)  # fmt: skip
def test_options_of_phi3_v_that_are_not_implemented_are_named(
    section: str, key: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {**tiny_phi3_v.PARTS, section: {**tiny_phi3_v.PARTS[section], key: value}}
    config = {**tiny_phi3_v.TEXT, **parts, "architectures": ["Phi3VForCausalLM"], "model_type": "phi3_v"}
    with caplog.at_level("INFO", "octavo.models"):
        assert model_spec(config, "m").tower is None
    assert f"only the text part of the model is served: config: {section}: {key}" in caplog.text


@pytest.mark.parametrize("version", ["2.5", "2.6"])
def test_minicpm_v_stands_in_the_text_as_its_version_says(version: str) -> None:
    config = {"architectures": ["MiniCPMV"], "version": version, "query_num": 2}
    processor = media_processor(config, {"norm_mean": [0.5] * 3, "norm_std": [0.5] * 3}, {"<unk>": 0}.get)
    assert processor is not None and processor.placeholder == "(<image>./</image>)"
    rows = "<unk><unk>"
    whole = f"<image>{rows}</image>"
    few, many = (processor.image(pixels(*size, 0), {}).text for size in ((448, 448), (900, 896)))
    if version == "2.5":
        assert few == whole
        assert many == f"{whole}<slice>{whole}{whole}\n{whole}{whole}</slice>"
    else:
        number, own = "<image_id>{n}</image_id>", f"<slice>{rows}</slice>"
        assert few == number + whole
        assert many == f"{number}{whole}{own}{own}\n{own}{own}"
    low = processor.image(pixels(900, 896, 0), {"detail": "low"})
    assert "<slice>" not in low.text
    with pytest.raises(InvalidRequest, match="max_slice_nums"):
        processor.image(pixels(30, 30, 0), {"max_slice_nums": 0})


def test_other_versions_of_minicpm_v_are_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="version = '4.5'"):
        model_spec({"architectures": ["MiniCPMV"], "version": "4.5", "hidden_size": 256}, "m")
