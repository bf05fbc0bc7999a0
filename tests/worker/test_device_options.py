"""Options that the device at hand cannot honour are refused by name, before the model is read."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.base import host
from octavo.base.cgroup import Cgroups, CPULimit
from octavo.base.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig
from octavo.base.errors import CheckpointError, DeviceError, InvalidConfig
from octavo.device import cuda, select
from octavo.device.cpu import CPUDevice
from octavo.device.cuda import CUDADevice
from octavo.worker.step_sizes import swap_bytes
from octavo.worker.worker import Worker
from support.described_gpu import gpu


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
        ({"enforce_eager": True, "cudagraph_capture_sizes": [1]}, "--enforce-eager captures nothing"),
    ],
)
def test_on_a_cpu(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidConfig, match=told):
        load(**{"device": "cpu"} | options)


def test_on_a_cpu_what_speaks_of_a_gpu_s_memory_and_kernels_needs_nothing_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache = {"gpu_memory_utilization": 0.9, "swap_space": 1e9}
    with caplog.at_level("INFO", "octavo.worker"), pytest.raises(CheckpointError, match="/nowhere"):
        load(cache, device="cpu", cudagraph_capture_sizes=[1, 2], attention_backend="FLASHINFER", batch_invariant=True)
    assert (
        "accepted, nothing to do on a CPU: --gpu-memory-utilization 0.9, --swap-space 1000000000.0, "
        "--cudagraph-capture-sizes 1,2, --attention-backend FLASHINFER, --batch-invariant"
    ) in caplog.text
    with caplog.at_level("INFO", "octavo.worker"), pytest.raises(CheckpointError):
        load(device="cpu", enforce_eager=True)
    assert "accepted, nothing to do on a CPU: --enforce-eager" in caplog.text


TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


def test_weights_that_do_not_fit_are_refused_before_the_first_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    phases: list[str] = []

    def start(free: int, **settings: Any) -> None:
        monkeypatch.setattr(host, "free_memory", lambda: host.FreeMemory(free, "here"))
        model = ModelConfig(model=str(tmp_path), load_format="dummy", **settings)
        phases.clear()
        Worker(
            EngineConfig(model=model, parallel=ParallelConfig(device="cpu", num_threads=1)),
            lambda name, detail: phases.append(name),
        ).load()

    num_params = 2 * 320 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
    with pytest.raises(DeviceError, match="the weights take 0 MiB of memory, and there are 0 MiB free here"):
        start(2 * num_params - 1)
    assert phases == []
    with pytest.raises(DeviceError, match="weights take"):
        start(4 * num_params - 1, dtype="float32")
    with pytest.raises(InvalidConfig, match="KV cache has room for no block"):
        start(2 * num_params)
    assert "weights" in phases
    start(64 << 20)
    assert phases[-1] == "warm-up"


def test_threads_follow_a_quota_and_say_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(Cgroups, "cpu_limit", lambda self: CPULimit(0.5, "/sys/fs/cgroup/cpu.max"))
    with caplog.at_level("INFO", "octavo.device"):
        assert CPUDevice(ParallelConfig()).num_threads == 1
        assert "threads: 1, for /sys/fs/cgroup/cpu.max allows 0.5 CPUs" in caplog.text
        caplog.clear()
        assert CPUDevice(ParallelConfig(num_threads=2)).num_threads == 2
        assert caplog.text == ""


def test_memory_of_the_host_that_is_not_there_is_refused_for_swapping(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (9, 0))
    monkeypatch.setattr(host, "free_memory", lambda: host.FreeMemory(6 << 30, "here"))
    device = CUDADevice(ParallelConfig())

    def swap(asked: float | None) -> int:
        return swap_bytes(EngineConfig(cache=CacheConfig(swap_space=asked)), device)

    assert (swap(6.0), swap(0.0)) == (6 << 30, 0)
    assert swap(None) == 3 << 30  # the default is 4 GiB, and half of what is free at most
    with pytest.raises(InvalidConfig, match=r"--swap-space 900 asks for 900 GiB .* 6\.0 GiB free here"):
        swap(900.0)


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
    with pytest.raises(InvalidConfig, match="--num-threads 4 is for the CPU's kernels"):
        load(num_threads=4)


def test_types_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (8, 0))
    device = CUDADevice(ParallelConfig())
    assert device.activation_dtype(None, torch.float32) is torch.bfloat16
    assert device.activation_dtype(None, None) is torch.bfloat16
    assert device.activation_dtype(None, torch.float16) is torch.float16
    assert device.activation_dtype(torch.float32, torch.bfloat16) is torch.float32
    device.check_cache_dtype(torch.float8_e5m2, "fp8_e5m2")
    with pytest.raises(DeviceError, match="--kv-cache-dtype fp8_e4m3 needs .* fp8_e5m2 runs on it"):
        device.check_cache_dtype(torch.float8_e4m3fn, "fp8_e4m3")
    with pytest.raises(DeviceError, match="--kv-cache-dtype int8 is for a model that runs on the CPU"):
        device.check_cache_dtype(torch.int8, "int8")


def test_the_cache_gets_what_is_left_of_a_gpus_share(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(monkeypatch, (9, 0))
    device = CUDADevice(ParallelConfig())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 << 30, 80 << 30))
    budget = device.kv_cache_budget(CacheConfig(gpu_memory_utilization=0.5), 0)
    assert budget.num_bytes == (40 - 20 - 1) << 30 and budget.default_bytes is None
    assert "50% of 80 GiB" in budget.reason
    assert str(budget.free) == "59.0 GiB free of the GPU's 80.0 GiB"
    assert device.kv_cache_budget(CacheConfig(gpu_memory_utilization=0.1), 0).num_bytes == 0


def test_a_gpu_without_a_c_compiler_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton compiles what launches a kernel when the first is launched: in the middle of a request."""
    cuda.check_compiler()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(DeviceError, match="C compiler.*install gcc"):
        cuda.check_compiler()
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DeviceError, match="C compiler.*install gcc"):
        cuda.check_compiler()
    monkeypatch.undo()
    monkeypatch.setattr(cuda.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(DeviceError, match="python3-dev"):
        cuda.check_compiler()
