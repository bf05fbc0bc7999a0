"""Options that the device at hand cannot honour are refused by name, before the model is read."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from described_gpu import gpu
from octavo.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig
from octavo.device import select
from octavo.device.cpu import CPUDevice
from octavo.device.cuda import CUDADevice
from octavo.errors import DeviceError, InvalidConfig
from octavo.worker.worker import Worker


def load(cache: dict[str, Any] | None = None, model: dict[str, Any] | None = None, **parallel: Any) -> None:
    config = EngineConfig(
        model=ModelConfig(model="/nowhere", **(model or {})),
        cache=CacheConfig(**(cache or {})),
        parallel=ParallelConfig(**parallel),
    )
    Worker(config, lambda name, detail: None).load()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": {"quantization": "fp8"}}, "--quantization is for a GPU"),
        ({"cache": {"gpu_memory_utilization": 0.9}}, "--gpu-memory-utilization is for a GPU"),
        ({"cache": {"swap_space": 4.0}}, "--swap-space is for a GPU"),
        ({"cudagraph_capture_sizes": [1, 2]}, "--cudagraph-capture-sizes is for a GPU"),
        ({"attention_backend": "FLASHINFER"}, "--attention-backend is for a GPU"),
        ({"enforce_eager": True, "cudagraph_capture_sizes": [1]}, "--enforce-eager captures nothing"),
    ],
)
def test_on_a_cpu(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidConfig, match=told):
        load(**{"device": "cpu"} | options)


def test_a_cpu_has_no_float8_cache() -> None:
    with pytest.raises(DeviceError, match="--kv-cache-dtype fp8 needs a GPU"):
        CPUDevice(ParallelConfig()).check_cache_dtype(torch.float8_e5m2)


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cuda: torch finds no NVIDIA GPU"):
        load(device="cuda")


def test_a_gpu_that_is_too_old_is_told_and_auto_takes_the_cpu(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu(monkeypatch, (7, 5))
    with pytest.raises(DeviceError, match=r"compute capability 7\.5; octavo needs 8\.0"):
        load(device="cuda")
    assert select.make_device(ParallelConfig()).name == "cpu"
    assert "7.5" in caplog.text


def test_auto_takes_a_gpu_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (9, 0))
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    device = select.make_device(ParallelConfig())
    assert device.name == "cuda" and device.description == "cuda, Test GPU, 80 GiB"
    with pytest.raises(InvalidConfig, match="--num-threads is for the CPU's kernels"):
        load(num_threads=4)


def test_types_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (8, 0))
    device = CUDADevice(ParallelConfig())
    assert device.activation_dtype(None, torch.float32) is torch.bfloat16
    assert device.activation_dtype(None, None) is torch.bfloat16
    assert device.activation_dtype(None, torch.float16) is torch.float16
    assert device.activation_dtype(torch.float32, torch.bfloat16) is torch.float32
    device.check_cache_dtype(torch.float8_e5m2)
    with pytest.raises(DeviceError, match="fp8_e5m2 runs on it"):
        device.check_cache_dtype(torch.float8_e4m3fn)


def test_the_cache_gets_what_is_left_of_a_gpus_share(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (9, 0))
    device = CUDADevice(ParallelConfig())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 << 30, 80 << 30))
    budget = device.kv_cache_budget(CacheConfig(gpu_memory_utilization=0.5))
    assert budget.num_bytes == (40 - 20 - 1) << 30 and budget.default_bytes is None
    assert "50% of 80 GiB" in budget.reason
    assert device.kv_cache_budget(CacheConfig(gpu_memory_utilization=0.1)).num_bytes == 0
