"""Settings of image processors: from which file, and what is wrong with them told at the start."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.base.errors import CheckpointError
from octavo.launch.media import tried
from octavo.text.media.files import image_settings
from octavo.text.media.table import media_processor
from support.pictures import IDS, square


def test_settings_are_read_from_either_file() -> None:
    assert image_settings({"image_processor": {"size": 1}}, {"size": 2}) == {"size": 1}
    assert image_settings({"patch_size": 14}, {"size": 2}) == {"size": 2}
    assert image_settings(None, None) == {}


def test_a_processor_that_does_not_fit_its_tower_is_refused() -> None:
    with pytest.raises(CheckpointError, match="56 x 56"):
        square(crop_size={"height": 56, "width": 56})
    assert media_processor({"architectures": ["LlamaForCausalLM"]}, {}, IDS.get) is None


def llava(**settings: Any) -> Any:
    return tried(lambda: square(**settings), "model")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image_std": [0, 0, 0]}, "image_std"),
        ({"image_mean": "x"}, "ValueError"),
        ({"image_mean": [0, 0, 0, 0]}, "ValueError"),
        ({"rescale_factor": None}, "TypeError"),
        ({"crop_size": {}}, "KeyError"),
        ({"resample": 99}, "Resampling"),  # these are read with the first picture
        ({"size": "x"}, "AttributeError"),
        ({"size": 0}, "height and width must be > 0"),
    ],
)
def test_settings_that_cannot_be_used_are_told_at_the_start(settings: dict[str, Any], told: str) -> None:
    assert llava() is not None
    with pytest.raises(CheckpointError, match=told):
        llava(**settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("MiniCPMV4_6ForConditionalGeneration", {"scale_resolution": 0}), ("Phi3VForCausalLM", {"num_crops": "x"})],
)
def test_so_are_those_of_other_families(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"ZeroDivisionError|ValueError"):
        tried(lambda: media_processor({"architectures": [name]}, settings, lambda text: 5), "model")
    assert tried(lambda: media_processor({"architectures": [name]}, {}, lambda text: 5), "model") is not None
