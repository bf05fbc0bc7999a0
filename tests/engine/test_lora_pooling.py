"""Adapters of decoders that give vectors; models whose tokens see all of their text take none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine.test_lora import LORA, ids_of
from engine.test_pooling import DECODER, SMALL
from octavo.base.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from octavo.base.errors import InvalidConfig
from octavo.base.params import PoolingParams, SamplingParams
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest
from octavo.worker.worker import Worker
from support.adapters import merged, random_adapter, write_adapter


def worker_of(path: Path) -> tuple[Worker, EngineConfig]:
    config = EngineConfig(
        model=ModelConfig(model=str(path), dtype="float32"),
        cache=CacheConfig(kv_cache_memory_bytes=1 << 22),
        scheduler=SchedulerConfig(max_num_seqs=16),
        lora=LORA,
    )
    return Worker(config, lambda name, detail: None), config


@pytest.mark.parametrize("at_the_top", [True, False])
def test_vectors_are_those_of_the_model_with_the_adapter_merged(tmp_path: Path, at_the_top: bool) -> None:
    """`at_the_top`: modules are named as in a model without an output matrix."""
    torch.manual_seed(1)
    model: Any = transformers.Qwen3Model(transformers.Qwen3Config(**DECODER)).eval()
    model.save_pretrained(tmp_path / "base")
    worker, config = worker_of(tmp_path / "base")
    info = worker.load()
    own = {}
    for seed, key in enumerate("ab"):
        own[key] = random_adapter(model, r".*(q_proj|up_proj|down_proj)", 8, seed)
        written = own[key] if at_the_top else {f"model.{name}": value for name, value in own[key].items()}
        worker.read_adapter(key, str(write_adapter(tmp_path / key, written, 8)))

    def vectors(keys: list[str]) -> list[bytes]:
        scheduler = Scheduler(config, info)
        for number, key in enumerate(keys):
            made = AddRequest(
                number, ids_of(number % 2, 17), SamplingParams(max_tokens=1), pooling=PoolingParams(), adapter=key
            )
            assert scheduler.add(made) is None
        found: dict[int, bytes] = {}
        while scheduler.has_work:
            plan = scheduler.schedule()
            for output in scheduler.update(plan, worker.execute(plan)):
                assert output.pooled is not None, output.error
                found[output.request_id] = output.pooled
        return [found[number] for number in range(len(keys))]

    keys = ["", "a", "b", "", "b", "a"]
    together = vectors(keys)
    assert [vectors([key])[0] for key in keys[::2]] == together[::2]
    for number, key in enumerate(keys):
        with torch.no_grad():
            reference = merged(model, own[key], 2.0) if key else model
            hidden = reference(torch.tensor([ids_of(number % 2, 17)])).last_hidden_state[0, -1]
        expected = torch.nn.functional.normalize(hidden, dim=0)
        found = torch.from_numpy(np.frombuffer(together[number], "<f4").copy())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_encoders_take_none(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(InvalidConfig, match="--enable-lora: models whose tokens see all of their text take no"):
        worker_of(tmp_path)[0].load()
