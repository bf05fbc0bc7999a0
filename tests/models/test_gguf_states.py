"""Models with states read from GGUF are the same models as from Hugging Face's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from models.family_cases import CASES, PROMPTS, make_model, transformers_logits
from models.gguf_state_files import write_state_gguf
from models.running import load, prompt_logits
from octavo.base.errors import CheckpointError
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")

FILES: dict[str, str] = {
    "mamba": "mamba",
    "mamba-untied-biases": "mamba",
    "falcon-mamba": "mamba",
    "mamba2": "mamba2",
    "jamba": "jamba",
    "jamba-dense": "jamba",
    "falcon-h1": "falcon-h1",
    "falcon-h1-normed": "falcon-h1",
    "granite-hybrid": "granitehybrid",
    "granite-hybrid-dense": "granitehybrid",
    "nemotron-h": "nemotron_h",
    "nemotron-h-experts": "nemotron_h_moe",
    "nemotron-h-latent-experts": "nemotron_h_moe",
}
#: What files do not tell, or llama.cpp has not, of the families' options.
CHANGES: dict[str, dict[str, Any]] = {
    "falcon-mamba": {"mixer_rms_eps": 1e-6},
    "nemotron-h-experts": {"n_group": 1, "topk_group": 1},
    "mamba-untied-biases": {"use_bias": False},
    "falcon-h1-normed": {"mamba_d_ssm": 96, "mamba_rms_norm": True, "mamba_norm_before_gate": False},
    "jamba-dense": {"num_experts": 1, "num_experts_per_tok": 1},
    "nemotron-h-latent-experts": {"mlp_bias": False},
}
BASES = {"falcon-h1-normed": "falcon-h1", "jamba-dense": "jamba"}


@pytest.mark.parametrize("case", FILES)
def test_gguf_holds_the_same_model(case: str, tmp_path: Path) -> None:
    family, options = CASES[BASES.get(case, case)]
    model = make_model(tmp_path / "hf", family, {**options, **CHANGES.get(case, {})})
    path = tmp_path / "model.gguf"
    write_state_gguf(path, FILES[case], tmp_path / "hf")
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


def test_layers_that_guess_further_tokens_are_left_out(tmp_path: Path) -> None:
    family, options = CASES["nemotron-h-experts"]
    model = make_model(tmp_path / "hf", family, {**options, **CHANGES["nemotron-h-experts"]})
    path = tmp_path / "model.gguf"
    write_state_gguf(path, "nemotron_h_moe", tmp_path / "hf", num_drafting=1)
    ops = bind("cpu", "reference")
    ours = torch.stack(prompt_logits(load(path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("case", "quantized"), [("mamba", "ssm_in"), ("mamba2", "ssm_in"), ("falcon-h1", "ssm_out")])
def test_quantized_projections_are_split_as_they_are(case: str, quantized: str, tmp_path: Path) -> None:
    """Natively, with integer weights; and no row minds how its prompt was cut, or its company."""
    make_model(tmp_path / "hf", *CASES[case])
    path = tmp_path / "model.gguf"
    write_state_gguf(path, FILES[case], tmp_path / "hf", quantized=quantized)
    native, reference = bind("cpu"), bind("cpu", "reference")
    loaded, exact = load(path, native), load(path, reference)
    assert loaded.quantization == "Q8_0 x3"
    whole = torch.stack(prompt_logits(loaded, native, PROMPTS))
    expected = torch.stack(prompt_logits(exact, reference, PROMPTS))
    assert ((whole - expected).norm(dim=-1) / expected.norm(dim=-1)).median() < 0.06
    assert torch.equal(torch.stack(prompt_logits(loaded, native, PROMPTS, 7)), whole)
    assert torch.equal(prompt_logits(loaded, native, PROMPTS[:1])[0], whole[0])


@pytest.mark.parametrize(
    ("case", "arch", "changes", "message"),
    [
        ("jamba", "jamba", {"attention.head_count_kv": 2}, "head_count_kv does not say which of 3 layers"),
        ("nemotron-h", "nemotron_h", {"feed_forward_length": 128}, "feed_forward_length does not say"),
        ("nemotron-h", "nemotron_h", {"block_count": 3}, "head_count_kv does not say which of 3 layers"),
        ("nemotron-h", "nemotron_h", {"ssm.inner_size": 81}, "ssm.inner_size does not fit the heads"),
        ("mamba2", "mamba2", {"ssm.group_count": 3}, "mamba_n_groups"),
        ("mamba", "mamba", {"ssm.state_size": 9}, "has the shape"),
        ("granite-hybrid", "granitehybrid", {"rope.dimension_count": 8}, "rope.dimension_count"),
    ],
)
def test_metadata_that_does_not_fit_is_refused_by_name(
    case: str, arch: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    make_model(tmp_path / "hf", *CASES[case])
    path = tmp_path / "model.gguf"
    write_state_gguf(path, arch, tmp_path / "hf", changes=changes)
    with pytest.raises(CheckpointError, match=message):
        load(path, bind("cpu", "reference"))
