"""Towers and what becomes of their rows, against transformers in float32, on tiny random models that also see.

Pictures come through octavo's processors and the worker; the reference is transformers' model with the processor that
resizes with Pillow.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
import torch

from engine.harness import Engine
from models.tower_cases import CASES, TEXT
from models.towers import Case
from octavo.base.errors import CheckpointError
from octavo.models.config_reader import ConfigReader
from octavo.models.families import llama
from octavo.models.vision import llama4, mllama
from octavo.ops.run import Runner
from octavo.ops.table import Ops, bind
from octavo.worker import worker as worker_module
from support.pictures import pixels
from support.tiny_mllama import VISION as MLLAMA


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("tower"), request.param)


def test_a_prompt_with_pictures_is_scored_as_transformers_scores_it(case: Case) -> None:
    images = [pixels(30, 20, 1), pixels(16, 16, 2)]
    case.check_scored(images)


def test_a_picture_in_chunks_is_the_same_bit_for_bit(case: Case) -> None:
    ids, media = case.prompt([pixels(30, 20, 1), pixels(40, 40, 2)])
    whole = case.reply(ids, media)
    if case.family != "PaliGemma":  # whose prompts are computed in one step
        assert case.reply(ids, media, max_num_batched_tokens=7, max_num_prefill_tokens=7) == whole
    assert case.reply(ids, media, media_step_rows=1, media_cache_rows=1) == whole


@pytest.mark.parametrize("case", ["glm4v", "minicpm-v-4.6"], indirect=True)
def test_prompts_give_the_same_alone_and_in_company(case: Case) -> None:
    case.company()


@pytest.mark.parametrize("case", ["llava", "qwen2-vl", "gemma3"], indirect=True)
def test_a_prompt_may_end_with_a_picture(case: Case) -> None:
    image = pixels(16, 16, 2)
    ids, media = case.prompt([image])
    ids = ids[: media[-1].end]
    found, tokens = case.reply(ids, media)
    logprobs = case.expected(ids, [image])
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
    assert tokens[0] == int(logprobs[-1].argmax())


@pytest.mark.parametrize(
    "case", ["llava", "idefics3", "qwen3-vl", "glm4v", "minicpm-v-4.6", "gemma3", "mistral3", "internvl"], indirect=True
)
def test_operations_one_by_one_are_the_native_program(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def bound(*args: Any, **options: Any) -> Ops:
        return dataclasses.replace(bind(*args, **options), program_runner=Runner)

    monkeypatch.setattr(worker_module, "bind", bound)
    engine = Engine(case.path)
    ids, media = case.prompt([pixels(30, 20, 1), pixels(16, 16, 2)])
    assert case.reply(ids, media, engine=engine) == case.reply(ids, media)


@pytest.mark.parametrize(
    ("family", "vision", "told"),
    [
        ("Llama4", {"pixel_shuffle_ratio": 0.4}, "pixel_shuffle_ratio = '0.4'"),
        ("Llama4", {"intermediate_size": 65}, "intermediate_size = '65'"),
        ("Llama4", {"vision_output_dim": 41}, "vision_output_dim = '41'"),
        ("Llama4", {"hidden_act": "silu"}, "hidden_act = 'silu'"),
        ("Llama4", {"vision_feature_layer": -2}, "vision_feature_layer = '-2'"),
        ("Llama4", {"num_attention_heads": 8}, "num_attention_heads = '8'"),
        ("Mllama", {"intermediate_layers_indices": [2, 0]}, "is not in rising order"),
        ("Mllama", {"intermediate_layers_indices": [4]}, "numbers of the 4 layers"),
        ("Mllama", {"vision_output_dim": 7}, "vision_output_dim = '7'"),
        ("Mllama", {"supported_aspect_ratios": [[1, 1]]}, "supported_aspect_ratios = "),
        ("Mllama", {"image_size": [16, 32]}, "is not the side of a square"),
        ("Mllama", {"num_channels": 1}, "num_channels = '1'"),
    ],
)
def test_towers_that_are_not_implemented_are_refused_by_key_and_value(
    family: str, vision: dict[str, Any], told: str
) -> None:
    made, usual = {"Llama4": (llama4.tower, CASES["llama4"][1]["vision_config"]), "Mllama": (mllama.tower, MLLAMA)}[
        family
    ]
    text = llama.spec(ConfigReader({**TEXT, "hidden_act": "silu"}))
    made(ConfigReader({"vision_config": usual}), text)
    with pytest.raises(CheckpointError, match=re.escape(told)):
        made(ConfigReader({"vision_config": {**usual, **vision}}), text)
