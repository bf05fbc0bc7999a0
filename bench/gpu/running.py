"""octavo.LLM for the stages: a model with random weights, loads put through it, and the time they take."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

from gpu import roofline
from gpu.context import Context
from gpu.roofline import BF16, Lengths, Precision
from gpu.shapes import Shape
from gpu.workloads import Load, Work, random_works
from octavo.base.params import SamplingParams
from octavo.offline.llm import LLM, RequestOutput
from octavo.wire.messages import AS_GRAPHS

#: On a CPU: small, and started at once.
_TINY: Final[dict[str, Any]] = {
    "num_threads": 2, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 16, "max_model_len": 2048,
}  # fmt: skip
#: What a CPU refuses.
_ONLY_GPU: Final = ("quantization", "kv_cache_dtype")


def settings(context: Context, **more: Any) -> dict[str, Any]:
    """Those of `octavo.LLM`. What only a GPU has is left out on a CPU; --set wins over all."""
    given: dict[str, Any] = {"device": context.device, "load_format": "dummy", **more}
    if context.is_tiny:
        given = {name: value for name, value in given.items() if name not in _ONLY_GPU} | _TINY
    return given | dict(context.settings)


class Model:
    """One loaded model of a shape."""

    def __init__(self, context: Context, name: str, precision: Precision = BF16, **more: Any) -> None:
        self.context = context
        self.name = name
        self.shape: Shape = context.shape(name)
        self.precision = precision
        start = time.perf_counter()
        self.llm = LLM(str(context.model(name)), **settings(context, **more))
        self.load_seconds = time.perf_counter() - start
        info = self.llm.info
        split = ", ".join(f"{what} {seconds:.1f}" for what, seconds in info.load_seconds.items())
        self.kv_tokens = info.num_kv_blocks * info.block_size
        note = f"{split}; {info.device}; KV {self.kv_tokens:,} tokens of {info.kv_cache_dtype}"
        context.row(f"{name}: LLM(...)", self.load_seconds, "s", note=note)

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self._tell_steps()
        finally:
            self.llm.close()

    def _tell_steps(self) -> None:
        """How many of the steps were no graphs, and why."""
        stats = self.llm._thread.run(self.llm._model.engine.call("stats"))
        steps: dict[str, int] = stats["graph_steps"]
        if not steps:
            return  # a CPU
        others = {how: count for how, count in steps.items() if how not in AS_GRAPHS}
        share = 100 * sum(others.values()) / sum(steps.values())
        note = ", ".join(f"{how} {count:,}" for how, count in sorted(steps.items(), key=lambda item: -item[1]))
        self.context.row(f"{self.name}: steps launched kernel by kernel", share, "%", note=note)

    @property
    def vocab(self) -> int:
        return self.shape.vocab

    def sized(self, load: Load) -> Load:
        return self.context.sized(load, self.vocab)

    def generate(self, load: Load) -> tuple[float, list[RequestOutput]]:
        """Seconds, and the results. All requests are given at once."""
        params = [exactly(work.output_len, load.temperature, top_k=load.top_k, top_p=load.top_p) for work in load.works]
        start = time.perf_counter()
        outputs = self.llm.generate([work.prompt for work in load.works], params, use_tqdm=False)
        seconds = time.perf_counter() - start
        found = sum(len(output.outputs[0].token_ids) for output in outputs)
        assert found == load.num_output_tokens, f"{found} tokens came, {load.num_output_tokens} were asked for"
        return seconds, outputs

    def warm_up(self, streams: int) -> None:
        """Compiles what is compiled, for long prompts too, and lets steps of decoding be captured at the sizes that
        loads run through."""
        if self.context.is_tiny:
            streams = min(streams, 16)
        for seed in (1, 2):  # a size is captured when it comes again
            lengths = [(64 if self.context.is_tiny else 1500, 4), *((16, 4 + i // 2) for i in range(streams))]
            self.generate(Load(random_works(lengths, self.vocab, seed)))

    def throughput(
        self, what: str, load: Load, rounds: int = 1, lengths: Sequence[Lengths] | None = None, **more: Any
    ) -> float:
        """A row with output tokens a second, and its share of the roofline. Of several rounds the best counts."""
        load = self.sized(load)
        note = f"{len(load.works)} requests, in {load.num_prompt_tokens:,}, out {load.num_output_tokens:,}"
        runs = [self.generate(load if i == 0 else reseeded(load, self.vocab, i)) for i in range(rounds)]
        times = [seconds for seconds, _ in runs]
        seconds, outputs = min(runs, key=lambda run: run[0])
        cached = sum(output.num_cached_tokens for output in outputs)
        if cached:
            note += f", {cached:,} of the prompts' tokens cached"
        if cached > sum(work.shared for work in load.works):
            more["status"] = "failed"  # what was not computed would count as computed
        if rounds > 1:
            note += "; runs of " + ", ".join(f"{t:.2f}" for t in times) + " s"
        note += f"; {more.pop('note')}" if "note" in more else ""
        lengths = lengths or lengths_of(load)
        at_a_time = roofline.concurrency(lengths, self.llm.info.max_num_seqs, self.kv_tokens)
        steps = roofline.num_steps(lengths, at_a_time)
        shares = self.context.share(
            lambda peaks: (
                roofline.ar_seconds(self.shape, lengths, peaks, steps=steps, precision=self.precision) / seconds
            )
        )
        self.context.row(what, load.num_output_tokens / seconds, "tok/s out", note=note, **shares, **more)
        return seconds

    def step_seconds(self, works: Sequence[Work], output_len: int, rounds: int = 3) -> tuple[float, float]:
        """(a step of decoding, the first token): from runs to one token and to all, whose medians are subtracted.

        All runs but the very first find the prompts in the prefix cache, so that of these "first" is not the time
        of a prompt.
        """
        one, all_of_it = (Load([Work(work.prompt, count) for work in works]) for count in (1, output_len))
        first = self.generate(one)[0]
        self.generate(all_of_it)
        short = statistics.median(self.generate(one)[0] for _ in range(rounds))
        long = statistics.median(self.generate(all_of_it)[0] for _ in range(rounds))
        return max(1e-9, long - short) / (output_len - 1), first


def exactly(num_tokens: int, temperature: float = 0.0, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=temperature, max_tokens=num_tokens, ignore_eos=True, **more)


def lengths_of(load: Load) -> list[Lengths]:
    return [Lengths(len(work.prompt), work.output_len) for work in load.works]


def reseeded(load: Load, vocab: int, seed: int) -> Load:
    """The same lengths, other ids: nothing is found in the prefix cache."""
    lengths = [(len(work.prompt), work.output_len) for work in load.works]
    return dataclasses.replace(load, works=random_works(lengths, vocab, 1000 + seed))
