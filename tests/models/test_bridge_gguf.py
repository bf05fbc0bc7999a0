"""GGUF files through transformers' modules: the same model, or a refusal that says what it lacks."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch

from models.family_cases import PROMPTS, make_model, transformers_logits
from models.running import load, prompt_logits
from models.test_gguf_families import CASES, write_gguf
from octavo.base.errors import CheckpointError
from octavo.models.bridge.gguf import TRIED
from octavo.models.bridge.model import BridgedModel
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")

#: Of each type that is read, one file at least.
SAME = (
    "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "qwen3-moe", "deepseek-v3", "qwen2-moe",
    "glm4-moe-no-groups", "olmoe", "phi3", "gpt-neox", "gpt-neox-sequential", "phi", "olmo2", "stablelm-parallel",
    "starcoder2", "nemotron", "arcee",
)  # fmt: skip


def written(case: str, directory: Path, quantization: gguf.GGMLQuantizationType | None = None) -> Path:
    """The case's model in directory / "hf", and its file."""
    arch, family, options = CASES[case]
    write_gguf(
        directory / "a.gguf", arch, directory / "hf", make_model(directory / "hf", family, options), quantization
    )
    return directory / "a.gguf"


@pytest.mark.parametrize("case", SAME)
def test_logits_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    arch, family, options = CASES[case]
    model = make_model(tmp_path / "hf", family, options)
    write_gguf(tmp_path / "a.gguf", arch, tmp_path / "hf", model)
    ops = bind("cpu")
    loaded = load(tmp_path / "a.gguf", ops, model_impl="transformers")
    assert isinstance(loaded.model, BridgedModel)
    assert loaded.model.definition.spec.model_type in TRIED
    found = torch.stack(prompt_logits(loaded, ops, PROMPTS))
    torch.testing.assert_close(found, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_quantized_weights_stay_as_small_as_they_are(tmp_path: Path) -> None:
    path, ops = written("llama", tmp_path, gguf.GGMLQuantizationType.Q8_0), bind("cpu")
    loaded, own = load(path, ops, model_impl="transformers"), load(path, ops)
    assert loaded.weight_bytes < 1.02 * own.weight_bytes
    found, expected = (torch.stack(prompt_logits(each, ops, PROMPTS)) for each in (loaded, own))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("llama-rope-factors", "no rotation with the factors that are in the file"),
        ("olmo3", "a .gguf file of the type olmo3 is not read for transformers; octavo's own family reads it"),
        ("phi3-longrope", "change with the longest sequence of a step"),
    ],
)
def test_what_would_be_another_model_is_refused(case: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(written(case, tmp_path), bind("cpu"), model_impl="transformers")


def test_a_setting_that_the_class_has_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match="attn_logit_softcapping, which the file says, is no setting of transformers' llama"
    ):
        load(
            written("llama", tmp_path), bind("cpu"), model_impl="transformers",
            hf_overrides='{"attn_logit_softcapping": 3.0}',
        )  # fmt: skip
