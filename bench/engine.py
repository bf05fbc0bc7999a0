"""How fast the engine is without its server: a whole model's steps, from the scheduler to the sampled tokens.

    PYTHONPATH=src python bench/engine.py MODEL [--threads 2] [--streams 1,32] [--prompt 512] [--tokens 64] [--passes 3]

Prints tokens/s of decoding by so many sequences at once, each with a short prompt, and of one long prompt. The best
and the median of the passes: on a shared machine the best is nearer to what the code can do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from octavo.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from octavo.core.scheduler import Scheduler
from octavo.messages import AddRequest, EngineInfo
from octavo.params import SamplingParams
from octavo.worker.worker import Worker


class Bench:
    """A loaded model; each measurement has a scheduler of its own and no prefix cache."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        self._config = EngineConfig(
            model=ModelConfig(model=model, max_model_len=context),
            cache=CacheConfig(kv_cache_memory_bytes=1 << 30, enable_prefix_caching=False),
            scheduler=SchedulerConfig(max_num_seqs=64, max_num_batched_tokens=512),
            parallel=ParallelConfig(num_threads=threads),
        )
        self._worker = Worker(self._config, lambda name, detail: None)
        self.info: EngineInfo = self._worker.load()

    def _start(self, streams: int, prompt: int, tokens: int) -> Scheduler:
        scheduler = Scheduler(self._config, self.info)
        for i in range(streams):
            ids = [(37 * i + 11 * k) % 1000 + 100 for k in range(prompt)]
            params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
            refused = scheduler.add(AddRequest(i, ids, params))
            assert refused is None, refused
        return scheduler

    def _step(self, scheduler: Scheduler) -> None:
        plan = scheduler.schedule()
        scheduler.update(plan, self._worker.execute(plan))

    def decode(self, streams: int, tokens: int) -> float:
        """Tokens/s after all sequences' prompts of 8 tokens have been read."""
        scheduler = self._start(streams, 8, tokens + 1)
        self._step(scheduler)
        start = time.perf_counter()
        while scheduler.has_work:
            self._step(scheduler)
        return streams * tokens / (time.perf_counter() - start)

    def prefill(self, prompt: int) -> float:
        """Tokens/s of one prompt, up to its first token."""
        scheduler = self._start(1, prompt, 1)
        start = time.perf_counter()
        while scheduler.has_work:
            self._step(scheduler)
        return prompt / (time.perf_counter() - start)


def report(name: str, measure: Callable[[], float], passes: int) -> None:
    rates = [measure() for _ in range(passes)]
    print(f"{name:24} {max(rates):8.1f} best {statistics.median(rates):8.1f} median tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", default="1,32")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--passes", type=int, default=3)
    args = parser.parse_args()
    bench = Bench(args.model, args.threads, max(args.prompt, args.tokens) + 64)
    print("loaded in", {name: round(seconds, 2) for name, seconds in bench.info.load_seconds.items()})
    for streams in map(int, args.streams.split(",")):
        report(f"decode, {streams} streams", partial(bench.decode, streams, args.tokens), args.passes)
    if args.prompt:
        report(f"prompt of {args.prompt}", partial(bench.prefill, args.prompt), args.passes)


if __name__ == "__main__":
    main()
