"""What a real worker tells of a step's time, and what torch records of it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from octavo.base.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, StepTimes
from octavo.base.params import SamplingParams
from octavo.wire.step import NewRequestData, SchedulerOutput
from octavo.worker.worker import Worker


@pytest.fixture(scope="module")
def worker(smollm2_gguf: Path) -> Worker:
    config = EngineConfig(
        model=ModelConfig(model=str(smollm2_gguf), max_model_len=128),
        cache=CacheConfig(kv_cache_memory_bytes=16 << 20),
        parallel=ParallelConfig(num_threads=1),
        step_times=StepTimes(collect_detailed_traces=["all"]),
    )
    worker = Worker(config, lambda name, detail: None)
    worker.load()
    return worker


def a_step() -> SchedulerOutput:
    request = NewRequestData(
        slot=0, request_id=1, prompt_token_ids=[1, 2, 3], num_prompt_tokens=3, params=SamplingParams(temperature=0.0),
        eos_token_ids=(), block_ids=[[1]], num_computed_tokens=0, sample_index=0, sampling_seed=None,
    )  # fmt: skip
    return SchedulerOutput([request], [], {0: 3}, [], 3, 1)


def test_the_forward_pass_is_a_part_of_what_the_worker_does(worker: Worker) -> None:
    seconds = worker.execute(a_step()).seconds
    assert seconds is not None and seconds.forward is not None and seconds.worker is not None
    assert 0.0 < seconds.forward < seconds.worker


def test_torch_records_between_start_and_stop(worker: Worker, tmp_path: Path) -> None:
    worker.start_profile()
    worker.execute(a_step())
    worker.stop_profile(str(tmp_path / "torch.json.gz"))
    events = json.loads(gzip.decompress((tmp_path / "torch.json.gz").read_bytes()))["traceEvents"]
    assert any(str(event.get("name", "")).startswith("aten::") for event in events)
