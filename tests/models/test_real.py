"""Real weights: the same file through transformers, and text that makes sense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.running import greedy, load, prompt_logits
from octavo.files.gguf import GGUFFile
from octavo.models.decoder import define
from octavo.models.gguf_checkpoint import GGUFCheckpoint
from octavo.models.layout import TensorSource
from octavo.models.loader import LoadedModel
from octavo.models.registry import find_family, model_spec
from octavo.ops.table import Ops, bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def native() -> Ops:
    return bind("cpu")


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, native: Ops) -> LoadedModel:
    return load(smollm2_gguf, native)


def ids_of(path: Path, *pieces: str) -> list[int]:
    """Token ids of pieces that are whole tokens of the file's vocabulary."""
    with GGUFFile(path) as file:
        tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]
        index = {token: i for i, token in enumerate(tokens)}
        return [index[piece] for piece in pieces]


def text_of(path: Path, ids: list[int]) -> str:
    with GGUFFile(path) as file:
        tokens: list[str] = file.metadata["tokenizer.ggml.tokens"]
        return "".join(tokens[i] for i in ids).replace("\u0120", " ").replace("\u2581", " ").replace("\u010a", "\n")


CAPITAL = ("The", "\u0120capital", "\u0120of", "\u0120France", "\u0120is")


def transformers_logits(path: Path, ids: list[int]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    source: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def divergence(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence over the positions."""
    ours, theirs = logits.log_softmax(-1), expected.log_softmax(-1)
    return float((theirs.exp() * (theirs - ours)).sum(-1).mean())


@pytest.mark.parametrize("fixture", ["smollm2_gguf", "qwen_gguf"])
def test_the_memory_that_weights_take_is_known_before_they_are_read(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    """A start is refused by this number: it must be near what the packed weights take, and not more."""
    path: Path = request.getfixturevalue(fixture)
    checkpoint = GGUFCheckpoint(path)
    told = sum(checkpoint.nbytes(name) for name in checkpoint.names())
    assert 0.9 * path.stat().st_size < told < path.stat().st_size


def test_smollm2_has_the_logits_of_transformers(smollm2_gguf: Path, native: Ops, smollm2: LoadedModel) -> None:
    ids = ids_of(smollm2_gguf, *CAPITAL) + list(range(1000, 1020))
    expected = transformers_logits(smollm2_gguf, ids)
    reference = bind("cpu", "reference")
    exact = prompt_logits(load(smollm2_gguf, reference), reference, [ids])[0]
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=2e-3)
    # The native kernels quantise activations to 8 and 15 bits, and the cache of this file is float16.
    assert divergence(prompt_logits(smollm2, native, [ids])[0], expected) < 2e-3


def test_smollm2_knows_the_capital_of_france(smollm2_gguf: Path, native: Ops, smollm2: LoadedModel) -> None:
    prompt = ids_of(
        smollm2_gguf, "<|im_start|>", "user", "\u010a", "What", "\u0120is", "\u0120the", "\u0120capital", "\u0120of",
        "\u0120France", "?", "<|im_end|>", "\u010a", "<|im_start|>", "ass", "istant", "\u010a",
    )  # fmt: skip
    assert "Paris" in text_of(smollm2_gguf, greedy(smollm2, native, prompt, 12))


def test_the_same_weights_as_safetensors_give_the_same_text(
    smollm2_gguf: Path, smollm2_hf: Path, native: Ops, smollm2: LoadedModel
) -> None:
    ids = ids_of(smollm2_gguf, *CAPITAL)
    dense = load(smollm2_hf, native)
    assert (dense.quantization, dense.dtype) == ("none", torch.bfloat16)
    assert smollm2.quantization == "Q4_1 x210, Q8_0 x1"
    assert dense.num_params == smollm2.num_params
    assert dense.spec == smollm2.spec
    assert smollm2.weight_bytes < dense.weight_bytes / 2
    ours, theirs = (prompt_logits(model, native, [ids])[0] for model in (smollm2, dense))
    assert divergence(ours, theirs) < 0.02


def assert_native_follows_reference(path: Path, native: Ops, loaded: LoadedModel, prompt: list[int]) -> None:
    """Dequantised weights and plain torch; SmolLM2's test ties that to transformers."""
    ours = prompt_logits(loaded, native, [prompt])[0]
    reference = bind("cpu", "reference")
    assert divergence(ours, prompt_logits(load(path, reference), reference, [prompt])[0]) < 2e-3


@pytest.mark.slow
def test_qwen_writes_code(qwen_gguf: Path, native: Ops) -> None:
    loaded = load(qwen_gguf, native)
    assert loaded.quantization == "Q5_0 x133, Q8_0 x13, Q6_K x12, Q4_K x12"
    prompt = ids_of(
        qwen_gguf, "def", "\u0120add", "(a", ",", "\u0120b", "):", "\u010a", "\u0120\u0120\u0120", "\u0120return"
    )
    assert text_of(qwen_gguf, greedy(loaded, native, prompt, 3)) == " a + b"
    assert_native_follows_reference(qwen_gguf, native, loaded, prompt)


@pytest.mark.slow
def test_gemma_knows_where_paris_is(gemma_gguf: Path, native: Ops) -> None:
    loaded = load(gemma_gguf, native)
    prompt = ids_of(gemma_gguf, "<bos>", "Paris", "\u2581is", "\u2581the", "\u2581capital", "\u2581of")
    assert text_of(gemma_gguf, greedy(loaded, native, prompt, 1)) == " France"
    assert_native_follows_reference(gemma_gguf, native, loaded, prompt)


def test_a_real_gpt2_says_what_it_says_in_transformers(gpt2_hf: Path, native: Ops) -> None:
    expected = [964, 6350, 320, 3317, 7829, 239, 3514, 8688, 4401, 4227, 6228, 6077]
    assert greedy(load(gpt2_hf, native), native, [2], len(expected)) == expected


def test_gguf_rows_of_q_and_k_come_back_in_the_order_of_halves(smollm2_gguf: Path, smollm2_hf: Path) -> None:
    """The exact weights, against what another reader of the file made of them (rounded to bfloat16)."""
    from safetensors import safe_open

    checkpoint = GGUFCheckpoint(smollm2_gguf)
    definition = define(model_spec(checkpoint.config, "test"))
    source = TensorSource(checkpoint, find_family(checkpoint.config, "test").gguf, definition)
    with safe_open(smollm2_hf / "model.safetensors", framework="pt") as dense:
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"):
            full = f"model.layers.3.{name}.weight"
            weight = source.get(definition.tensors[full])
            assert not isinstance(weight, torch.Tensor)
            assert torch.equal(weight.dequantize().to(torch.bfloat16), dense.get_tensor(full))
    assert np.isclose(checkpoint.config["rope_parameters"]["rope_theta"], 100_000)
