"""Scales of a float8 KV cache: where they come from, what is refused, and that they change what they should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo.base.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from octavo.base.errors import CheckpointError, InvalidConfig
from octavo.device.base import Device
from octavo.models.checkpoint import DummyCheckpoint
from octavo.models.decoder import define
from octavo.models.registry import model_spec
from octavo.worker.kv_scales import measured_scales
from octavo.worker.worker import Worker
from support import quantized_checkpoints as q
from support.tiny_bart import make_bart
from worker.devices import HostDevice

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu", "torch_dtype": "float32",
    "rope_theta": 10000.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights in float8, without scales for a cache."""
    root = tmp_path_factory.mktemp("model")
    plain = root / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(LLAMA))
    dummy = DummyCheckpoint(define(model_spec(LLAMA, "test")).tensors, LLAMA, "test", 0)
    save_file({name: dummy.get(name) for name in dummy.names()}, plain / "model.safetensors")
    method = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    return q.write(plain, root / "quantized", q.float8, method)


def with_tensors(model: Path, to: Path, **tensors: torch.Tensor) -> Path:
    to.mkdir()
    for file in model.iterdir():
        if file.name == "config.json":
            (to / file.name).write_bytes(file.read_bytes())
    save_file({**load_file(model / "model.safetensors"), **tensors}, to / "model.safetensors")
    return to


def worker(model: Path, max_model_len: int | None = None, **cache: Any) -> Worker:
    config = EngineConfig(
        model=ModelConfig(model=str(model), max_model_len=max_model_len),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 20, **cache),
        scheduler=SchedulerConfig(max_num_seqs=2),
        parallel=ParallelConfig(device="cpu", num_threads=1),
    )
    return Worker(config, lambda name, detail: None)


def loaded_scales(model: Path, **cache: Any) -> list[tuple[float, float]]:
    """Of each layer, as the program has them."""
    loading = worker(model, **cache)
    loading.load()
    caches = loading._runner._model.definition.program.caches
    return [(cache.k_scale, cache.v_scale) for cache in caches]


def scales_file(tmp_path: Path, **changes: Any) -> str:
    cache = {"dtype": "float8_e4m3fn", "scaling_factor": {"0": {"0": 0.25, "1": 0.5}}, **changes.pop("kv_cache", {})}
    path = tmp_path / "scales.json"
    path.write_text(json.dumps({"model_type": "llama", "kv_cache": cache, **changes}))
    return str(path)


NAMES: list[tuple[dict[str, float], list[tuple[float, float]]]] = [
    ({"0.self_attn.k_scale": 0.5, "0.self_attn.v_scale": 0.25}, [(0.5, 0.25), (1.0, 1.0)]),
    ({"1.self_attn.kv_scale": 0.5}, [(1.0, 1.0), (0.5, 0.5)]),
    ({"0.self_attn.k_proj.k_scale": 2.0, "0.self_attn.v_proj.v_scale": 4.0}, [(2.0, 4.0), (1.0, 1.0)]),
    ({"0.self_attn.k_proj.output_scale": 2.0, "0.self_attn.v_proj.output_scale": 4.0}, [(2.0, 4.0), (1.0, 1.0)]),
    ({"0.self_attn.k_scale": 0.5, "0.self_attn.q_scale": 9.0}, [(0.5, 0.5), (1.0, 1.0)]),
]


@pytest.mark.parametrize(("stored", "expected"), NAMES)
def test_a_checkpoint_brings_its_scales(
    stored: dict[str, float], expected: list[tuple[float, float]], model: Path, tmp_path: Path
) -> None:
    tensors = {f"model.layers.{name}": torch.tensor([value]) for name, value in stored.items()}
    path = with_tensors(model, tmp_path / "scaled", **tensors)
    assert loaded_scales(path, kv_cache_dtype="fp8") == expected
    for other in ("auto", "int8", "fp8_e5m2"):
        assert loaded_scales(path, kv_cache_dtype=other) == [(1.0, 1.0)] * 2


@pytest.mark.parametrize(
    ("scale", "told"),
    [(torch.tensor([0.5, 0.5]), "k_scale has 2 scales"), (torch.tensor(0.0), "k_scale is 0"),
     (torch.tensor(torch.nan), "k_scale is nan"), (torch.tensor(1e-40), "k_scale is 9.99995e-41")],
)  # fmt: skip
def test_a_scale_that_is_none_is_refused_where_it_would_be_used(
    scale: torch.Tensor, told: str, model: Path, tmp_path: Path
) -> None:
    path = with_tensors(model, tmp_path / "scaled", **{"model.layers.0.self_attn.k_scale": scale})
    with pytest.raises(CheckpointError, match=told):
        worker(path, kv_cache_dtype="fp8").load()
    worker(path, kv_cache_dtype="int8").load()


def test_a_file_brings_scales_and_goes_before_the_checkpoints(model: Path, tmp_path: Path) -> None:
    path = with_tensors(model, tmp_path / "scaled", **{"model.layers.0.self_attn.kv_scale": torch.tensor(9.0)})
    given = {"kv_cache_dtype": "fp8_e4m3", "quantization_param_path": scales_file(tmp_path)}
    assert loaded_scales(path, **given) == [(0.25, 0.25), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kv_cache": {"dtype": "float8_e5m2"}}, "kv_cache.dtype is 'float8_e5m2'"),
        ({"kv_cache": None}, "no object kv_cache"),
        ({"kv_cache": {"scaling_factor": {"0": {}, "1": {}}}}, "the layers of one rank"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0, "one": 1.0}}}}, "'one' is not the number of a layer"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0, "1": 0}}}}, "the scale of layer 1 must be a number above 0"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0, "1": 10**400}}}}, "the scale of layer 1 must be a number"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0, "1": 1e-310}}}}, "the scale of layer 1 must be a number"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0, "1" * 5000: 1.0}}}}, "'1{40}' is not the number of a layer"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0}}}}, "scales of 1 layers, and not of each of the 2"),
        ({"kv_cache": {"scaling_factor": {"0": {"0": 1.0, "7": 1.0}}}}, "not of each of the 2"),
        ({"model_type": "gemma"}, "for a model of type 'gemma', and this one's is 'llama'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(changes: dict[str, Any], told: str, model: Path, tmp_path: Path) -> None:
    if changes.get("kv_cache", ...) is None:
        path = tmp_path / "scales.json"
        path.write_text('{"model_type": "llama"}')
    else:
        path = Path(scales_file(tmp_path, **changes))
    with pytest.raises(InvalidConfig, match=told):
        worker(model, kv_cache_dtype="fp8", quantization_param_path=str(path)).load()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"quantization_param_path": "x.json"}, "--quantization-param-path is for a cache of float8.* auto takes"),
        ({"quantization_param_path": "x.json", "kv_cache_dtype": "int8"}, "int8 takes no scales"),
        ({"calculate_kv_scales": True, "kv_cache_dtype": "fp8_e5m2"}, "--calculate-kv-scales .* fp8_e5m2 takes no"),
        ({"calculate_kv_scales": True, "quantization_param_path": "x", "kv_cache_dtype": "fp8"}, "two sources"),
        ({"quantization_param_path": "/nowhere/x.json", "kv_cache_dtype": "fp8"}, "No such file"),
    ],
)
def test_options_that_contradict_each_other_are_refused_before_the_model_is_read(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidConfig, match=told):
        worker(Path("/nowhere"), **options).load()


def test_scales_that_are_found_are_those_of_every_start(model: Path) -> None:
    found = loaded_scales(model, kv_cache_dtype="fp8", calculate_kv_scales=True)
    assert found == loaded_scales(model, kv_cache_dtype="fp8", calculate_kv_scales=True)
    assert all(0 < scale < 1 for pair in found for scale in pair) and len(set(sum(found, ()))) == 4


def test_a_run_for_scales_is_no_longer_than_the_context(model: Path) -> None:
    """The tables of rotations end there: what lies behind them is other memory."""
    short = loaded_scales(model, max_model_len=20, kv_cache_dtype="fp8", calculate_kv_scales=True)
    loading = worker(model, kv_cache_dtype="fp8")
    loading.load()
    runner = loading._runner
    assert short == list(measured_scales(runner._model, runner._ops, cast(Device, HostDevice()), 20).values())
    assert short != loaded_scales(model, kv_cache_dtype="fp8", calculate_kv_scales=True)


@pytest.mark.parametrize("max_model_len", [1, 2, 3])
def test_a_context_of_a_few_tokens_is_warmed_up_within_it(max_model_len: int, model: Path) -> None:
    loading = worker(model, max_model_len=max_model_len, kv_cache_dtype="fp8", calculate_kv_scales=True)
    assert loading.load().max_model_len == max_model_len


def test_a_decoders_scales_are_those_of_tokens_that_see_an_encoder(tmp_path: Path) -> None:
    make_bart(tmp_path)
    found = worker(tmp_path, kv_cache_dtype="fp8", calculate_kv_scales=True)
    found.load()
    caches = found._runner._model.definition.program.caches
    own = [(each.k_scale, each.v_scale) for each in caches if not each.of_encoder]
    assert all(0 < scale < 1 for pair in own for scale in pair) and len(set(own)) == 3
    assert {(each.k_scale, each.v_scale) for each in caches if each.of_encoder} == {(1.0, 1.0)}


def test_scales_outlast_sleep(model: Path) -> None:
    loading = worker(model, kv_cache_dtype="fp8", calculate_kv_scales=True)
    loading.load()
    before = loading._runner._model.definition.program.caches
    for level in (1, 2):
        loading.sleep(level)
        loading.wake_up()
        after = loading._runner._model.definition.program.caches
        assert after == before and after[0].k_scale != 1.0


def test_blocks_are_as_large_as_their_type_says(model: Path) -> None:
    """Two layers, two heads of keys and of values, 16 tokens, 16 numbers a head; int8 has four bytes more."""
    found = {}
    for dtype in ("float32", "bfloat16", "fp8", "fp8_e5m2", "int8"):
        info = worker(model, kv_cache_dtype=dtype, num_kv_blocks_override=9).load()
        found[dtype] = info.kv_cache_bytes // info.num_kv_blocks
    values = 2 * 2 * 2 * 16 * 16
    assert found == {
        "float32": 4 * values,
        "bfloat16": 2 * values,
        "fp8": values,
        "fp8_e5m2": values,
        "int8": values * 20 // 16,
    }
