"""Which share of a load's steps is replayed as graphs: the scheduler and what chooses graphs, with nothing computed.

PYTHONPATH=bench:src python -m gpu.coverage [NAME ...]      needs no GPU; a name is the beginning of a load's
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from gpu import workloads
from gpu.workloads import Load
from octavo.base.config import EngineConfig, ModelConfig, SchedulerConfig
from octavo.base.params import SamplingParams
from octavo.core.scheduler.scheduler import Scheduler
from octavo.ops.operands import Heads
from octavo.ops.triton.attention_plan import AttentionPlanner
from octavo.wire.messages import AddRequest, EngineInfo
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput
from octavo.worker.graphs import MAX_GRAPH_SIZE, StepGraphs, ladder, token_ladder
from octavo.worker.input_batch import HostBatch, build_batch
from octavo.worker.request_states import RequestStates

VOCAB: Final = 32_000
BLOCK_SIZE: Final = 16
#: Llama-3.1-8B's, and tokens of its cache on a GPU of 141 GB.
HEADS: Final = Heads(num_heads=32, num_kv_heads=8, head_dim=128)
CACHE_TOKENS: Final = 830_000
MAX_NUM_SEQS, MAX_BATCHED, MAX_PREFILL = 256, 8192, 2048
#: Of a load with a rate.
STEP_SECONDS: Final = 0.008

LOADS: Final[dict[str, Callable[[], Load]]] = {
    "W1": workloads.w1,
    "W2, 256 out": lambda: workloads.w2(VOCAB, output_len=256),
    "W3, 500 at once": lambda: workloads.w3(VOCAB, None),
    "W3, 2,000 at once": lambda: workloads.w3(VOCAB, None, 2000),
    "W3, 16 a second": lambda: workloads.w3(VOCAB, 16.0, 300),
    "W3, 32 a second": lambda: workloads.w3(VOCAB, 32.0),
    "W4 prefill-heavy": lambda: workloads.w4(VOCAB, is_prefill_heavy=True),
    "W4 decode-heavy": lambda: workloads.w4(VOCAB, is_prefill_heavy=False),
    "W6, 8 at once, 256 out": lambda: workloads.w6(VOCAB, 8, 256),
    "W8, 256 requests": lambda: workloads.w8(VOCAB, 256),
    "256 streams, 128/128": lambda: Load(workloads.random_works([(128, 128)] * 1024, VOCAB, 256)),
}


class _Nothing:
    """A device without memory: tensors have shapes alone."""

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def upload(self, *host: np.ndarray, into: torch.Tensor | None = None) -> list[torch.Tensor]:
        return [torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device="meta") for array in host]

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


@dataclass
class Seen:
    """What became of the steps of a load."""

    token_sizes: Sequence[int]
    max_blocks: int
    ways: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        device: Any = _Nothing()
        planner = AttentionPlanner(HEADS, torch.device("meta"), torch.bfloat16)
        sizes = ladder(min(MAX_NUM_SEQS, MAX_GRAPH_SIZE))
        self.graphs = StepGraphs(self._run, device, planner, sizes, self.max_blocks, token_sizes=self.token_sizes)

    def _run(self, batch: Any, needed: torch.Tensor | None) -> torch.Tensor:
        return torch.empty(len(batch.token_ids if needed is None else needed), 1, device="meta")

    def see(self, host: HostBatch) -> None:
        self.graphs.logits(host)
        self.ways[self.graphs.last] += 1

    @property
    def replayed(self) -> float:
        return 100 * self.ways["replayed"] / self.ways.total()


def info_for(max_model_len: int) -> EngineInfo:
    return EngineInfo(
        model_type="llama", vocab_size=VOCAB, max_model_len=max_model_len, num_kv_blocks=CACHE_TOKENS // BLOCK_SIZE,
        block_size=BLOCK_SIZE, max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_BATCHED,
        max_num_prefill_tokens=MAX_PREFILL, max_request_tokens=max_model_len, kv_cache_bytes=0, weight_bytes=0,
        num_params=0, dtype="bfloat16", kv_cache_dtype="bfloat16", quantization="none", device="none", ops={},
        load_seconds={}, plans_ahead=False,
    )  # fmt: skip


def arrivals(load: Load) -> list[float]:
    """Seconds at which the requests come."""
    if load.rate is None:
        return [0.0] * len(load.works)
    rng, now, times = random.Random(0), 0.0, []
    for _ in load.works:
        now += rng.expovariate(load.rate)
        times.append(now)
    return times


def run(load: Load, watchers: Sequence[Seen], max_model_len: int) -> None:
    """Put the load through the scheduler, a step every `STEP_SECONDS`; `watchers` see each step."""
    info = info_for(max_model_len)
    config = EngineConfig(model=ModelConfig(model="none"), scheduler=SchedulerConfig(max_num_seqs=MAX_NUM_SEQS))
    scheduler = Scheduler(config, info)
    states = RequestStates(MAX_NUM_SEQS, max_model_len, BLOCK_SIZE, VOCAB)
    coming = list(zip(arrivals(load), load.works, range(len(load.works)), strict=True))[::-1]
    now = 0.0
    while coming or scheduler.has_work:
        while coming and coming[-1][0] <= now:
            _, work, number = coming.pop()
            params = SamplingParams(temperature=0.0, max_tokens=work.output_len, ignore_eos=True)
            assert scheduler.add(AddRequest(number, work.prompt, params), None) is None
        now += STEP_SECONDS
        plan = scheduler.schedule()
        if plan.total_num_scheduled_tokens:
            host = _entered(states, plan)
            for watcher in watchers:
                watcher.see(host)
            slots = host.rows.slots
            states.fill_tokens(states.expect_tokens(slots), np.zeros(len(slots), np.int32))
            sampled: dict[int, list[int]] = {slot: [] for slot in plan.num_scheduled_tokens}
            scheduler.update(plan, ModelRunnerOutput(sampled | {slot: [0] for slot in slots.tolist()}))


def _entered(states: RequestStates, plan: SchedulerOutput) -> HostBatch:
    for slot in plan.finished_slots:
        states.remove(slot)
    for new in plan.new_requests:
        states.add(new)
    for known in plan.cached_requests:
        states.update(known)
    return build_batch(states, plan.num_scheduled_tokens, BLOCK_SIZE, splits_drafts=True)


def main(names: Sequence[str]) -> None:
    print("| load | steps | replayed, decoding alone | replayed | graphs with prompts | launched kernel by kernel |")
    print("|---|---|---|---|---|---|")
    for name, make in LOADS.items():
        if names and not name.startswith(tuple(names)):
            continue
        load = make()
        max_model_len = max(len(work.prompt) + work.output_len for work in load.works) + 1
        max_blocks = -(-max_model_len // BLOCK_SIZE) + 1
        before, after = Seen((), max_blocks), Seen(token_ladder(MAX_BATCHED), max_blocks)
        run(load, (before, after), max_model_len)
        reasons = {way: count for way, count in after.ways.most_common() if way not in ("replayed", "captured")}
        told = ", ".join(f"{way} {count}" for way, count in reasons.items())
        shares = f"{before.replayed:.0f} % | {after.replayed:.0f} %"
        print(f"| {name} | {after.ways.total():,} | {shares} | {after.graphs.num_with_prompts} | {told} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
