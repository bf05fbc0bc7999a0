"""Layers whose attentions differ in heads, in the sizes of heads or in kind: caches in pages of one pool."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.family_cases import PROMPT_LENGTH, PROMPTS, SIZES, make_model, transformers_logits
from models.running import Run, load, prompt_logits
from octavo.models import registry
from octavo.models.blocks import Attention, GatedMLP, LatentAttention, Sequential
from octavo.models.common import read_common
from octavo.models.config_reader import ConfigReader
from octavo.models.spec import ModelSpec
from octavo.ops.operands import Heads, Latent
from octavo.ops.table import bind, cache_shapes
from octavo.worker.kv_memory import block_values, kv_caches


def spec(config: ConfigReader) -> ModelSpec:
    """Llama, with `layers`: kv heads, size of a head and window of each; without heads a latent attention."""
    common = read_common(config)

    def layer(num_kv_heads: int, head_dim: int, window: int) -> Sequential:
        scale = head_dim**-0.5
        heads = Heads(num_heads=common.heads.num_heads, num_kv_heads=num_kv_heads or 1, head_dim=head_dim)
        attention: Any = Attention(heads=heads, rope=common.rope, scale=scale, window=window)
        if not num_kv_heads:
            latent = Latent(num_heads=common.heads.num_heads, nope_dim=8, rank=32, rope_dim=16)
            attention = LatentAttention(latent=latent, value_dim=8, scale=0.2, rope=common.rope, norm=common.norm)
        return Sequential(
            norm=common.norm,
            attention=attention,
            mlp=GatedMLP(size=common.intermediate_size, activation=common.activation),
        )

    return common.decoder([layer(*each) for each in config.get("layers")])


@pytest.fixture(autouse=True)
def a_family_of_many_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.FAMILIES, "ManyShapes", registry.Family("many_shapes", spec))


#: kv heads, size of a head, window. Global layers keep half of what the others do, in heads of twice the size.
LOCAL_AND_GLOBAL = [(2, 16, 24), (2, 16, 24), (2, 16, 24), (1, 16, 0)] * 2
WIDE_GLOBAL = [(4, 16, 24), (4, 16, 24), (1, 32, 0)] * 2
WITH_LATENTS = [(2, 16, 24), (0, 16, 0), (1, 16, 0)] * 2


def configuration(directory: Path, layers: Sequence[tuple[int, int, int]], **changes: Any) -> Path:
    config = {**SIZES, "architectures": ["ManyShapes"], "model_type": "many_shapes", "hidden_act": "silu"}
    config |= {"num_hidden_layers": len(layers), "layers": layers, **changes}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def unwritten(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype)


def test_kv_heads_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    """DeciLM: the same model has all of its heads where each kv head is written several times."""
    model = make_model(tmp_path, "Llama", {"num_key_value_heads": 4})
    counts = (1, 4, 2)
    for layer, num in zip(model.model.layers, counts, strict=True):
        for matrix in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            rows = matrix.weight.data.view(4, 16, -1)[:num].repeat_interleave(4 // num, 0)
            matrix.weight.data = rows.reshape(64, -1)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for number, num in enumerate(counts):
        for name in ("k_proj", "v_proj"):
            key = f"model.layers.{number}.self_attn.{name}.weight"
            tensors[key] = tensors[key].view(4, 16, -1)[:: 4 // num].reshape(num * 16, -1).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    configuration(tmp_path, [(num, 16, 0) for num in counts], rope_parameters=rope, rms_norm_eps=1e-6)
    for impl in ("reference", "auto"):
        ops = bind("cpu", impl)  # type: ignore[arg-type]
        ours = torch.stack(prompt_logits(load(tmp_path, ops), ops, PROMPTS, 7))
        torch.testing.assert_close(ours, transformers_logits(model, PROMPTS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [LOCAL_AND_GLOBAL, WIDE_GLOBAL, WITH_LATENTS])
def test_pages_hold_what_arrays_of_their_own_hold(layers: Sequence[tuple[int, int, int]], tmp_path: Path) -> None:
    """And both are what the reference says."""
    configuration(tmp_path, layers)
    options: dict[str, Any] = {"load_format": "dummy", "dtype": "float32"}
    reference, ops = bind("cpu", "reference"), bind()
    expected = torch.stack(prompt_logits(load(tmp_path, reference, **options), reference, PROMPTS, 20))
    loaded = load(tmp_path, ops, **options)
    own = torch.stack(prompt_logits(loaded, ops, PROMPTS, 20))
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)

    definition = loaded.model.definition
    shapes = [tuple(shape[1:] for shape in cache_shapes(ops, c.heads, 1, 16)) for c in definition.program.caches]
    run = Run(loaded, ops, len(PROMPTS), PROMPT_LENGTH, torch.float32)
    # The run has one table for all groups, whose blocks would be in use twice: each group has pages of its own.
    run.caches = [()] * len(definition.program.caches)
    for group in definition.cache_groups:
        pages = kv_caches(definition.cache_groups, shapes, 1 + run.block_tables.numel(), torch.float32, unwritten)
        for layer in group.layers:
            run.caches[layer] = pages[layer]
    assert any(not array.is_contiguous() for arrays in run.caches for array in arrays)
    paged = [run.step([prompt[at : at + 20] for prompt in PROMPTS]) for at in range(0, PROMPT_LENGTH, 20)]
    for i in range(len(PROMPTS)):
        assert torch.equal(torch.cat([part[i] for part in paged]), own[i])


def test_layers_of_half_the_size_leave_no_page_half_empty(tmp_path: Path) -> None:
    configuration(tmp_path, LOCAL_AND_GLOBAL)
    definition = load(tmp_path, bind(), load_format="dummy", dtype="float32").model.definition
    shapes = [tuple(s[1:] for s in cache_shapes(bind(), c.heads, 1, 16)) for c in definition.program.caches]
    held = sum(sum(torch.Size(shape).numel() for shape in shapes[layer]) for layer in range(len(shapes)))
    assert len(definition.cache_groups) * block_values(definition.cache_groups, shapes) == held
