"""What guidance costs: the steps of many guided sequences beside those of as many free ones.

    PYTHONPATH=src python bench/grammar.py MODEL [--threads 2] [--streams 32] [--tokens 64]

Prints medians for free sequences and for each kind of constraint: how long a step takes, the CPU time of all threads in
it, and what of that goes into making the masks, into forbidding logits, and into taking in the tokens. Guidance is the
sum of these, less what taking in takes for free sequences.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any, NamedTuple
from unittest import mock

from octavo.base.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from octavo.base.params import SamplingParams
from octavo.core.grammar.structured import LLGuidanceCompiler, StructuredOutputs
from octavo.core.scheduler.scheduler import Scheduler
from octavo.ops.table import bind
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from octavo.text.grammars.helper import canonical
from octavo.text.tokenizers.tokenizer import load_tokenizer
from octavo.text.tokenizers.vocabulary import vocabulary_of
from octavo.wire.messages import AddRequest
from octavo.worker.worker import Worker

TEXT = {"type": "string", "minLength": 200}
CONSTRAINTS: dict[str, dict[str, Any]] = {
    "a string of JSON": {"guided_json": TEXT},
    "an object": {
        "guided_json": {
            "type": "object",
            "properties": {"id": {"type": "integer"}, "tags": {"type": "array", "items": TEXT, "minItems": 9}},
            "required": ["id", "tags"], "additionalProperties": False,
        },
        "guided_whitespace_pattern": " ?",
    },
    "any JSON object": {"response_format": {"type": "json_object"}},
    "a regex": {"guided_regex": r"([a-z]{2,12} ){40,}\."},
    "a grammar": {"guided_grammar": 'root ::= (term ("+" | "-")){99} term\nterm ::= [0-9]+ | "(" term "*" term ")"'},
}  # fmt: skip


class Cost(NamedTuple):
    """Milliseconds of one step; all but the first are CPU time, of all threads."""

    wall: float
    cpu: float
    masks: float
    forbid: float
    update: float


class Bench:
    def __init__(self, model: str, threads: int, streams: int) -> None:
        self._config = EngineConfig(
            model=ModelConfig(model=model, max_model_len=512),
            cache=CacheConfig(kv_cache_memory_bytes=1 << 30, enable_prefix_caching=False),
            scheduler=SchedulerConfig(
                max_num_seqs=max(64, streams), max_num_batched_tokens=512, enable_jump_forward=False
            ),
            parallel=ParallelConfig(num_threads=threads),
        )
        self._ops = bind("cpu")
        with mock.patch("octavo.worker.worker.bind", lambda name: dataclasses.replace(self._ops, forbid=self._forbid)):
            self._worker = Worker(self._config, lambda name, detail: None)
            self._info = self._worker.load()
        self._streams = streams
        self._free = Cost(0, 0, 0, 0, 0)
        self._forbid_seconds = 0.0
        tokenizer = load_tokenizer(model)
        self._eos = tokenizer.eos_token_ids
        self._vocabulary = vocabulary_of(tokenizer, self._eos)
        self._compiler = LLGuidanceCompiler(self._info.vocab_size)
        started = time.perf_counter()
        self._compiler.set_vocabulary(self._vocabulary)
        print(f"vocabulary of {len(self._vocabulary.tokens)} tokens: {time.perf_counter() - started:.2f} s")

    def run(self, name: str, fields: dict[str, Any] | None, tokens: int) -> None:
        """Once with the masks made beside the model, as the engine does, and once before it, to see what they take."""
        beside, before = self._steps(fields, tokens, apart=False), self._steps(fields, tokens, apart=True)
        if not before:
            print(f"{name:18} ended too soon")
            return
        step = statistics.median(cost.wall for cost in beside)
        cpu, masks, forbid, update = (
            statistics.median(getattr(cost, part) for cost in before) for part in ("cpu", "masks", "forbid", "update")
        )
        if fields is None:
            self._free = Cost(step, cpu, masks, forbid, update)
        guidance = masks + forbid + update - self._free.update
        print(
            f"{name:18} {len(before):4} steps {step:7.2f} ms, {cpu:7.2f} ms of CPU: masks {masks:6.3f}, "
            f"forbidding {forbid:.3f}, update {update:.3f}; guidance {100 * guidance / cpu:.1f} % of it"
        )

    def _steps(self, fields: dict[str, Any] | None, tokens: int, *, apart: bool) -> list[Cost]:
        """The decoding steps before most of the sequences that end early have ended."""
        scheduler = Scheduler(self._config, self._info)
        structured = StructuredOutputs(len(self._vocabulary.tokens), lambda ready: None, self._compiler)
        spec = spec_of(fields, GrammarLimits()) if fields else None
        grammar = canonical(spec.kind, spec.source, spec.options) if spec else None
        for i in range(self._streams):
            ids = [(37 * i + 11 * k) % 1000 + 100 for k in range(16)]
            params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=i, grammar=grammar, ignore_eos=True)
            matcher = self._compiler.compile(grammar) if grammar else None
            scheduler.add(AddRequest(i + 1, ids, params, self._eos), matcher)
        costs = []
        while scheduler.has_work:
            plan = scheduler.schedule()
            self._forbid_seconds = 0.0
            times = [(time.perf_counter(), time.process_time())]
            structured.start_masks(plan, scheduler.slots)
            if apart:
                structured.finish_masks()
            times.append((time.perf_counter(), time.process_time()))
            step = self._worker.submit(plan)
            if plan.masked_slots:
                masks, _ = structured.finish_masks()
                self._worker.submit_masks(step, masks)
            result = self._worker.collect(step)
            times.append((time.perf_counter(), time.process_time()))
            scheduler.update(plan, result)
            times.append((time.perf_counter(), time.process_time()))
            if plan.total_num_scheduled_tokens == len(plan.num_scheduled_tokens) >= self._streams / 2:
                wall, cpu = ((last - first) * 1e3 for first, last in zip(times[0], times[-1], strict=True))
                masks, update = (1e3 * (times[i + 1][1] - times[i][1]) for i in (0, 2))
                costs.append(Cost(wall, cpu, masks, 1e3 * self._forbid_seconds, update))
        return costs

    def _forbid(self, *args: Any) -> None:
        """In place of the worker's op: it measures, and calls it."""
        started = time.process_time()
        self._ops.forbid(*args)
        self._forbid_seconds += time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    bench = Bench(args.model, args.threads, args.streams)
    bench.run("free", None, args.tokens)
    for name, fields in CONSTRAINTS.items():
        bench.run(name, fields, args.tokens)


if __name__ == "__main__":
    main()
