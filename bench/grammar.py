"""What masks cost: the steps of many guided sequences beside those of as many free ones.

    PYTHONPATH=src python bench/grammar.py MODEL [--threads 2] [--streams 32] [--tokens 64]

Prints the milliseconds of a step (median) for free sequences and for each kind of constraint, and how much of it goes
into making the masks; forbidding logits and taking in the tokens are the rest of the difference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from octavo.config import CacheConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from octavo.core.scheduler import Scheduler
from octavo.core.structured import LLGuidanceCompiler, StructuredOutputs
from octavo.messages import AddRequest
from octavo.params import SamplingParams
from octavo.text.grammar import GrammarLimits, spec_of
from octavo.text.grammar_helper import canonical
from octavo.text.tokenizer import load_tokenizer
from octavo.text.vocabulary import vocabulary_of
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


class Bench:
    def __init__(self, model: str, threads: int, streams: int) -> None:
        self._config = EngineConfig(
            model=ModelConfig(model=model, max_model_len=512),
            cache=CacheConfig(kv_cache_memory_bytes=1 << 30, enable_prefix_caching=False),
            scheduler=SchedulerConfig(max_num_seqs=max(64, streams), max_num_batched_tokens=512),
            parallel=ParallelConfig(num_threads=threads),
        )
        self._worker = Worker(self._config, lambda name, detail: None)
        self._info = self._worker.load()
        self._streams = streams
        tokenizer = load_tokenizer(model)
        self._eos = tokenizer.eos_token_ids
        self._vocabulary = vocabulary_of(tokenizer, self._eos)
        self._compiler = LLGuidanceCompiler(self._info.vocab_size)
        started = time.perf_counter()
        self._compiler.set_vocabulary(self._vocabulary)
        print(f"vocabulary of {len(self._vocabulary.tokens)} tokens: {time.perf_counter() - started:.2f} s")

    def run(self, name: str, fields: dict[str, Any] | None, tokens: int) -> None:
        scheduler = Scheduler(self._config, self._info)
        structured = StructuredOutputs(self._info.vocab_size, lambda ready: None, self._compiler)
        spec = spec_of(fields, GrammarLimits()) if fields else None
        grammar = canonical(spec.kind, spec.source, spec.options) if spec else None
        for i in range(self._streams):
            ids = [(37 * i + 11 * k) % 1000 + 100 for k in range(16)]
            params = SamplingParams(max_tokens=tokens, temperature=1.0, seed=i, grammar=grammar, ignore_eos=True)
            matcher = self._compiler.compile(grammar) if grammar else None
            scheduler.add(AddRequest(i + 1, ids, params, self._eos), matcher)
        steps, fills = [], []
        while scheduler.has_work:
            plan = scheduler.schedule()
            started = time.perf_counter()
            errors = structured.fill(plan, scheduler.slots)
            filled = time.perf_counter()
            result = self._worker.execute(plan)
            result.errors.update(errors)
            scheduler.update(plan, result)
            num_running = len(plan.num_scheduled_tokens)
            # Decoding only, and before most of those that end early have ended.
            if plan.total_num_scheduled_tokens == num_running >= self._streams / 2:
                steps.append(time.perf_counter() - started)
                fills.append(filled - started)
        if not steps:
            print(f"{name:18} ended too soon")
            return
        step, fill = statistics.median(steps) * 1e3, statistics.median(fills) * 1e3
        print(
            f"{name:18} {len(steps):4} steps  {step:7.2f} ms a step  masks {fill:6.3f} ms ({100 * fill / step:.1f} %)"
        )


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
