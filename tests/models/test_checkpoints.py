"""Checkpoints of all families as they are found: types, shards, names, tensors that are too many, and none at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.family_cases import CASES, PROMPTS, make_model, transformers_logits
from models.running import load, prompt_logits
from octavo import _cpu
from octavo.base.errors import CheckpointError
from octavo.models.layout import Layout, TensorSource
from octavo.models.params import TensorDecl
from octavo.ops.table import bind

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def round_weights(model: Any, dtype: torch.dtype) -> Any:
    """`model.to` would round the rope frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_weights_are_computed_with_in_float32(dtype: str, tmp_path: Path) -> None:
    """But for bfloat16 where the processor multiplies it: there activations are rounded to it, too."""
    model = make_model(tmp_path, "Llama", {})
    round_weights(model, getattr(torch, dtype)).save_pretrained(tmp_path)
    expected = transformers_logits(round_weights(model, torch.float32), PROMPTS)
    for impl in ("reference", "auto"):
        ops = bind("cpu", impl)
        loaded = load(tmp_path, ops)
        assert loaded.dtype == getattr(torch, dtype)
        rounds = impl == "auto" and dtype == "bfloat16" and _cpu.isa() == "avx512_vnni"
        tolerance = 0.1 if rounds else 1e-4
        ours = torch.stack(prompt_logits(loaded, ops, PROMPTS))
        torch.testing.assert_close(ours, expected, rtol=tolerance, atol=tolerance)


def test_the_dtype_flag_converts_the_weights(tmp_path: Path) -> None:
    model = make_model(tmp_path, "Llama", {})
    rounded = round_weights(round_weights(model, torch.bfloat16), torch.float32)
    expected = transformers_logits(rounded, PROMPTS)
    ops = bind("cpu", "reference")
    loaded = load(tmp_path, ops, dtype="bfloat16")
    assert loaded.dtype == torch.bfloat16
    # Norms stay float32 with us and were rounded by transformers.
    torch.testing.assert_close(torch.stack(prompt_logits(loaded, ops, PROMPTS)), expected, rtol=0.05, atol=0.05)
    assert load(tmp_path, ops, dtype="half").dtype == torch.float16
    assert load(tmp_path, ops, dtype="float").dtype == torch.float32


def test_shards_hold_the_same_model_as_one_file(tmp_path: Path) -> None:
    model = make_model(tmp_path / "one", "Qwen2", {})
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    ops = bind("cpu", "reference")
    one, shards = (prompt_logits(load(tmp_path / kind, ops), ops, PROMPTS)[0] for kind in ("one", "shards"))
    assert torch.equal(one, shards)


def test_dummy_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    make_model(tmp_path, "Gemma3", {"head_dim": 16})
    (tmp_path / "model.safetensors").unlink()
    ops = bind("cpu", "reference")
    run = partial(load, tmp_path, ops, load_format="dummy", dtype="float32")
    first, again, other = (prompt_logits(run(seed=seed), ops, PROMPTS)[0] for seed in (5, 5, 6))
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("case", ["gpt2", "gpt-neox", "bloom", "phi3", "mixtral"])
def test_dummy_weights_need_no_layout(case: str, tmp_path: Path) -> None:
    make_model(tmp_path, *CASES[case])
    (tmp_path / "model.safetensors").unlink()
    ops = bind("cpu")
    loaded = load(tmp_path, ops, load_format="dummy", dtype="float32")
    assert torch.isfinite(prompt_logits(loaded, ops, PROMPTS[:1])[0]).all()


def test_a_tensor_that_is_there_under_two_names_is_refused(tmp_path: Path) -> None:
    make_model(tmp_path, *CASES["gpt2"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["wte.weight"] = tensors["transformer.wte.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'transformer\.wte\.weight' and 'wte\.weight'|'wte\.weight' and"):
        load(tmp_path, bind())


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_prefix_of_gpt2_may_be_absent(prefix: str, tmp_path: Path) -> None:
    """And its buffers are no weights."""
    expected = transformers_logits(make_model(tmp_path, *CASES["gpt2"]), PROMPTS)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace("transformer.", prefix): tensor for name, tensor in tensors.items()}
    tensors[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, tmp_path / "model.safetensors")
    ops = bind()
    ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_the_list_of_long_rope_follows_the_longest_context(tmp_path: Path) -> None:
    """transformers takes the short factors while a prompt fits the original context; a text must not change its own."""
    model = make_model(tmp_path, *CASES["phi3-longrope"])
    short = [PROMPTS[0][:30]]
    ops = bind()
    ours = prompt_logits(load(tmp_path, ops, max_model_len=32), ops, short)[0]
    torch.testing.assert_close(ours, transformers_logits(model, short)[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(prompt_logits(load(tmp_path, ops), ops, short)[0], ours, atol=1e-2)


def test_layers_that_predict_further_tokens_are_no_part_of_the_model(tmp_path: Path) -> None:
    expected = transformers_logits(make_model(tmp_path, *CASES["deepseek-v3"]), PROMPTS)
    tensors = load_file(tmp_path / "model.safetensors")
    further = {
        name.replace(".2.", ".3.", 1): tensor.clone() for name, tensor in tensors.items() if ".layers.2." in name
    }
    save_file(
        {**tensors, **further, "model.layers.3.eh_proj.weight": torch.ones(64, 128)}, tmp_path / "model.safetensors"
    )
    ops = bind()
    torch.testing.assert_close(
        torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("flattened", [r"filters\.weight", ""])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3,), (4, 2, 3)])
def test_a_tensor_of_another_shape_is_refused_by_name(shape: tuple[int, ...], flattened: str) -> None:
    """A single number too, which has no dimension that counts."""
    filters = TensorDecl(name="filters.weight", gguf="filters.weight", shape=(4, 8), role="matrix")
    spec = SimpleNamespace(unused=(), tie_word_embeddings=False, model_type="seeing", layers=())
    definition: Any = SimpleNamespace(spec=spec, tensors={filters.name: filters})
    layout = Layout(flattened=flattened)

    def source(stored: tuple[int, ...]) -> TensorSource:
        checkpoint: Any = SimpleNamespace(
            names=lambda: [filters.name], shape=lambda _name: stored, naming="hf", source="model.safetensors"
        )
        return TensorSource(checkpoint, layout, definition)

    assert len(source((4, 2, 2, 2) if flattened else (4, 8))) == 1
    with pytest.raises(CheckpointError, match=r"'filters\.weight' has the shape"):
        source(shape)
