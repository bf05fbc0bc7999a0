"""A model that sees in two .gguf files is the model that it was made of."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from engine.harness import Engine
from models import tower_cases
from models.projector_files import write_projector, write_text
from models.tower_cases import IMAGE
from models.towers import Case
from octavo.base.config import ModelConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.files import sources
from octavo.files.gguf import GGUFFile
from octavo.files.projector import read_projector
from octavo.text.media.table import media_processor
from support.pictures import pixels

NAMES = (
    "llava", "llava-siglip", "llava-class-of-two-layers", "gemma3", "idefics3", "smolvlm", "qwen2-vl", "qwen2.5-vl",
    "pixtral", "mistral3", "internvl", "qwen3-vl", "qwen3-vl-moe",
)  # fmt: skip
#: What files of Gemma 3 do not say: every sixth layer sees all.
LAYERS = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}


class Files:
    """A model in safetensors, and the same in .gguf files."""

    def __init__(self, path: Path, name: str, patch: pytest.MonkeyPatch) -> None:
        patch.setitem(tower_cases.TEXTS, "Gemma3", {**tower_cases.GEMMA, **LAYERS})
        self.name, self.case = name, Case(path / "hf", name)
        self.text, self.projector = path / "model.gguf", path / "mmproj-model.gguf"
        write_text(self.text, path / "text", self.case.family, self.case.model)
        self.write(self.projector)

    def write(self, path: Path, **options: Any) -> None:
        write_projector(path, self.case.path, self.case.family, self.case.model, self.case.settings, **options)

    def engine(self, projector: Path | None = None, **options: Any) -> Engine:
        return Engine(self.text, mmproj=str(projector or self.projector), **options)


@pytest.fixture(scope="module", params=NAMES)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield Files(tmp_path_factory.mktemp("files"), request.param, patch)


def test_it_is_scored_as_transformers_scores_the_original(files: Files) -> None:
    images = [pixels(30, 20, 1), pixels(16, 16, 2)]
    ids, media = files.case.prompt(images)
    found, tokens = files.case.reply(ids, media, engine=files.engine())
    logprobs = files.case.expected(ids, images)
    expected = logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=2e-3)
    assert tokens[0] == int(logprobs[-1].argmax())


def test_its_processor_makes_the_same_of_pictures(files: Files) -> None:
    projector = read_projector(files.projector)
    found = media_processor(projector.config, projector.settings, lambda text: IMAGE)
    assert found is not None and found.placeholder_id == IMAGE
    if files.name == "llava-siglip":  # whose case has CLIP's settings
        assert projector.settings["size"] == {"height": 16, "width": 16}
        return
    for image in (pixels(30, 20, 1), pixels(16, 16, 2), pixels(50, 70, 3)):
        assert found.image(image, {}) == files.case.processor.image(image, {})


@pytest.mark.parametrize("files", ["llava", "gemma3", "pixtral", "qwen3-vl"], indirect=True)
def test_a_quantized_tower_is_computed_as_it_is(files: Files, tmp_path: Path) -> None:
    """Near the original, and with the same bits whatever is encoded beside it."""
    files.write(tmp_path / "q8.gguf", quantized=True)
    with gguf_types(tmp_path / "q8.gguf") as types:
        assert "Q8_0" in types
    ids, media = files.case.prompt([pixels(30, 20, 1), pixels(40, 40, 2)])
    engine = files.engine(tmp_path / "q8.gguf")
    whole = files.case.reply(ids, media, engine=engine)
    exact = files.case.reply(ids, media, engine=files.engine())
    apart = torch.tensor(whole[0]) - torch.tensor(exact[0])
    assert 0 < apart.abs().mean() < 0.2
    assert files.case.reply(ids, media, engine=engine, media_step_rows=1, media_cache_rows=1) == whole


@contextlib.contextmanager
def gguf_types(path: Path) -> Iterator[set[str]]:
    with GGUFFile(path) as file:
        yield {info.type_name for info in file.tensors.values()}


@pytest.mark.parametrize("files", ["llava"], indirect=True)
def test_a_projector_of_another_language_model_is_refused(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    edited(files.projector, other, {"mm.2.weight": lambda value: value[:32], "mm.2.bias": lambda value: value[:32]})
    with pytest.raises(CheckpointError, match=r"other.gguf: the projector of another .* are 32 wide, and .* 64"):
        files.engine(other)
    edited(files.projector, other, {}, {"clip.projector_type": "gemma3"})
    with pytest.raises(CheckpointError, match=r"the tensor 'mm.input_projection.weight' of 2 dimensions is missing"):
        files.engine(other)


@pytest.mark.parametrize("files", ["qwen2-vl"], indirect=True)
def test_a_projector_of_another_architecture_is_refused(files: Files, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    edited(files.text, other, {}, {"general.architecture": "qwen2"})
    with pytest.raises(CheckpointError, match=r"'qwen2vl_merger' belongs to a .* architecture qwen2vl, and .* 'qwen2'"):
        Engine(other, mmproj=str(files.projector))


@pytest.mark.parametrize("files", ["llava"], indirect=True)
@pytest.mark.parametrize(
    ("tensors", "values", "told"),
    [
        (
            {"v.blk.0.attn_q.weight": None},
            {},
            r"not a complete projector: 1 missing tensor: tower.layers.0.self_attn.q_pro",
        ),
        ({"v.blk.0.ln1.weight": lambda value: value[:8]}, {}, r"'tower.layers.0.input_layernorm.weight' has the shape"),
        ({"v.blk.0.attn_q.weight": lambda value: value * np.nan}, {}, r"holds NaN or infinite values"),
        ({}, {"general.architecture": "llama"}, r"architecture is 'clip', and this file's 'llama'"),
        ({}, {"clip.projector_type": "ldpv2"}, r"projector type 'ldpv2' is not supported; these are: mlp, gemma3"),
        ({}, {"clip.vision.block_count": 0}, r"clip.vision.block_count is '0', which is no size"),
        ({}, {"clip.vision.image_mean": [0.5]}, r"clip.vision.image_mean is not a list of 3 float values"),
        ({}, {"clip.vision.attention.head_count": 5}, r"num_attention_heads.* does not divide the 48 columns"),
        ({}, {"clip.vision.mm_patch_merge_type": "spatial_unpad"}, r"mm_patch_merge_type 'spatial_unpad'"),
        ({}, {"clip.has_audio_encoder": True}, r"clip.has_audio_encoder"),
        ({"mm.3.weight": "mm.2.weight"}, {}, r"1 unexpected tensor: mm.3.weight"),
    ],
)
def test_a_damaged_projector_is_told(
    files: Files, tmp_path: Path, tensors: dict[str, Any], values: dict[str, Any], told: str
) -> None:
    other = tmp_path / "other.gguf"
    edited(files.projector, other, tensors, values)
    with pytest.raises(CheckpointError, match=told):
        files.engine(other)


@pytest.mark.parametrize("files", ["llava"], indirect=True)
def test_a_projector_that_ends_early_is_told(files: Files, tmp_path: Path) -> None:
    content = files.projector.read_bytes()
    for size in (3, 40, 700, len(content) - 100):
        (tmp_path / "short.gguf").write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=r"short.gguf: "):
            files.engine(tmp_path / "short.gguf")


@pytest.mark.parametrize("files", ["llava"], indirect=True)
def test_the_projector_beside_a_model_is_found(files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model, projector = tmp_path / "model.gguf", tmp_path / "mmproj-F32.gguf"
    model.write_bytes(files.text.read_bytes())
    config = ModelConfig(model=str(model))
    assert sources.resolve(config).mmproj is None
    projector.write_bytes(files.projector.read_bytes())
    assert sources.resolve(config).mmproj == str(projector)
    assert sources.resolve(ModelConfig(model=str(tmp_path))).model == str(model)
    assert f"{projector} lies beside the model" in caplog.text
    (tmp_path / "mmproj-F16.gguf").write_bytes(files.projector.read_bytes())
    assert sources.resolve(config).mmproj is None
    assert "none is used: --mmproj names one" in caplog.text
    assert sources.resolve(dataclasses.replace(config, mmproj=str(projector))).mmproj == str(projector)
    (tmp_path / "mmproj-F16.gguf").unlink()
    edited(files.projector, projector, {"mm.2.weight": lambda value: value[:32]})
    assert sources.resolve(config).mmproj is None
    assert "is not used: " in caplog.text and "another language model" in caplog.text


def test_a_projector_is_for_gguf_files(tmp_path: Path, files: Files) -> None:
    with pytest.raises(InvalidConfig, match=r"--mmproj .* is for .gguf files"):
        sources.resolve(ModelConfig(model=str(files.case.path), mmproj=str(files.projector)))
    with pytest.raises(CheckpointError, match=r"projector '/nowhere.gguf': no such file"):
        sources.resolve(ModelConfig(model=str(files.text), mmproj="/nowhere.gguf"))


@pytest.mark.parametrize("files", ["llava", "gemma3"], indirect=True)
def test_no_tower_is_loaded_where_no_media_are_allowed(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    limit = {"limit_mm_per_prompt": '{"image": 0}'}
    for blind, seeing in (
        (files.engine(**limit), files.engine()),
        (Engine(files.case.path, **limit), files.case.engine),
    ):
        assert blind.info.media_kinds == () and "image" in seeing.info.media_kinds
        assert blind.info.num_params < seeing.info.num_params
        assert files.case.reply([3, 4, 5, 6], (), engine=blind) == files.case.reply([3, 4, 5, 6], (), engine=seeing)
    assert "only the text part of the model is served: --limit-mm-per-prompt allows no media" in caplog.text
    video = {"limit_mm_per_prompt": '{"image": 0, "video": 1}'}
    assert "image" in Engine(files.case.path, **video).info.media_kinds


def test_a_tower_that_says_how_prompts_see_themselves_stays(tmp_path: Path) -> None:
    case = Case(tmp_path, "paligemma")
    blind = Engine(tmp_path, limit_mm_per_prompt='{"image": 0}')
    assert case.reply([3, 4, 5, 6], (), engine=blind) == case.reply([3, 4, 5, 6], ())


@pytest.mark.parametrize("files", ["qwen2-vl", "qwen3-vl", "qwen3-vl-moe"], indirect=True)
def test_the_language_model_can_be_served_alone(files: Files) -> None:
    alone = Engine(files.text)
    assert alone.info.media_kinds == ()
    assert files.case.reply([3, 4, 5, 6], (), engine=alone) == files.case.reply([3, 4, 5, 6], (), engine=files.engine())


@pytest.mark.parametrize("files", ["llava"], indirect=True)
def test_random_weights_take_both_files(files: Files) -> None:
    ids, media = files.case.prompt([pixels(16, 16, 2)])
    assert files.case.reply(ids, media, engine=files.engine(load_format="dummy"))[1]


@pytest.mark.parametrize("files", ["llava"], indirect=True)
def test_a_projector_is_no_model(files: Files) -> None:
    with pytest.raises(CheckpointError, match="this is a projector's file: name the language model's"):
        Engine(files.projector)


def edited(path: Path, to: Path, tensors: dict[str, Any], values: dict[str, Any] | None = None) -> None:
    """A copy of a .gguf file of floats with other tensors (None: without; a name: one more, as that is) and values."""
    reader = gguf.GGUFReader(path)
    given = {field.name: field.contents() for field in reader.fields.values() if not field.name.startswith("GGUF.")}
    given |= values or {}
    writer = gguf.GGUFWriter(to, given.pop("general.architecture"))
    for key, value in given.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    content = {tensor.name: tensor.data for tensor in reader.tensors}
    for name, change in tensors.items():
        content[name] = content[change] if isinstance(change, str) else change and change(content[name])
    for name, value in content.items():
        if value is not None:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
