"""The workloads W1 to W9, exact enough to replay: random token ids, replies of a fixed length, end tokens ignored.

Lengths and, where a source's program fixes them, ids are those of the source; all else follows from a seed of the
load's own, so that no load finds another's prompts in the cache.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: Lengths of the log-normal stand-in for ShareGPT.
_LONGEST: Final = 1024
_SPREAD: Final = 1.0


@dataclass(frozen=True)
class Work:
    """One request. `shared`: so many of the prompt's first tokens also begin the others' prompts."""

    prompt: list[int]
    output_len: int
    shared: int = 0


@dataclass(frozen=True)
class Load:
    """Requests and when they come: `rate` a second at random times, None: all at once. `top_k`, `top_p`: of draws."""

    works: list[Work]
    rate: float | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(work.prompt) for work in self.works)

    @property
    def num_output_tokens(self) -> int:
        return sum(work.output_len for work in self.works)


def random_works(lengths: Sequence[tuple[int, int]], vocab: int, seed: int = 0) -> list[Work]:
    """One request for each (in, out)."""
    rng = random.Random(seed)
    return [Work([rng.randrange(vocab) for _ in range(i)], o) for i, o in lengths]


def w1(num_requests: int = 256) -> Load:
    """nano-vllm's bench.py: its generator, draw for draw. Ids are below 10,001. In 142,827, out 133,966."""
    rng = random.Random(0)
    prompts = [[rng.randint(0, 10_000) for _ in range(rng.randint(100, 1024))] for _ in range(256)]
    outputs = [rng.randint(100, 1024) for _ in range(256)]
    works = [Work(prompt, out) for prompt, out in zip(prompts, outputs, strict=True)]
    return Load(works[:num_requests], temperature=0.6)


def w2(vocab: int, num_requests: int = 256, input_len: int = 1024, output_len: int = 1024) -> Load:
    """SGLang's measurement of determinism."""
    return Load(random_works([(input_len, output_len)] * num_requests, vocab, 20_000 + output_len))


def w3(vocab: int, rate: float | None, num_requests: int = 500) -> Load:
    """As long as ShareGPT's conversations are on average: in 202, out 179."""
    rng = random.Random(3)
    inputs, outputs = (_log_normal(rng, num_requests, mean) for mean in (202, 179))
    return Load(random_works(list(zip(inputs, outputs, strict=True)), vocab, 30_000), rate)


def w4(vocab: int, is_prefill_heavy: bool, num_requests: int = 500, output_len: int | None = None) -> Load:
    """In 462; out 16, or 256 where decoding is the most of it."""
    lengths = (462, output_len or (16 if is_prefill_heavy else 256))
    return Load(random_works([lengths] * num_requests, vocab, 40_000 + lengths[1]))


def w5(vocab: int, input_len: int, output_len: int, num_requests: int = 3000) -> Load:
    """A point of TensorRT-LLM's grid."""
    return Load(random_works([(input_len, output_len)] * num_requests, vocab, 50_000 + input_len + output_len))


def w6(vocab: int, num_requests: int = 150, output_len: int = 2000) -> Load:
    """About 20,000 in, each length within 15 %."""
    rng = random.Random(6)
    lengths = [(_around(rng, 20_000), _around(rng, output_len)) for _ in range(num_requests)]
    return Load(random_works(lengths, vocab, 60_000))


def w7(vocab: int, shared_share: float, num_requests: int = 100, input_len: int = 2048, output_len: int = 128) -> Load:
    """Prompts that begin alike; the common part depends on the share, so that no run finds another's."""
    shared = round(shared_share * input_len)
    seed = 700 + shared
    (first,) = random_works([(shared, 1)], vocab, seed)
    rests = random_works([(input_len - shared, output_len)] * num_requests, vocab, seed + 1)
    return Load([Work(first.prompt + rest.prompt, rest.output_len, shared) for rest in rests])


def w8(vocab: int, num_requests: int = 1000) -> Load:
    """SGLang's offline one: in 2,048 to 4,096, out 256 to 512, all lengths alike likely."""
    rng = random.Random(8)
    lengths = [(rng.randint(2048, 4096), rng.randint(256, 512)) for _ in range(num_requests)]
    return Load(random_works(lengths, vocab))


def w9(vocab: int, streams: int, input_len: int = 128, output_len: int = 128) -> Load:
    """Latency: so many streams at once, one alone first of all."""
    return Load(random_works([(input_len, output_len)] * streams, vocab, seed=900 + streams))


def shrunk(load: Load, vocab: int, most: int = 4, divisor: int = 32) -> Load:
    """A few requests of the load with all lengths divided, for trying out the program on a CPU."""
    works = [
        Work(
            [token % vocab for token in work.prompt[: max(2, len(work.prompt) // divisor)]],
            max(2, min(work.output_len, 8)),
            work.shared // divisor,
        )
        for work in load.works[:most]
    ]
    return dataclasses.replace(load, works=works)


def _log_normal(rng: random.Random, count: int, mean: int) -> list[int]:
    """Lengths from 4 to `_LONGEST` whose mean is `mean` to the nearest integer."""
    values = [rng.lognormvariate(0.0, _SPREAD) for _ in range(count)]
    low, high = 0.0, float(_LONGEST)
    for _ in range(60):  # the bounds cut the tail, so the factor is searched for
        factor = (low + high) / 2
        if sum(_clipped(factor * value) for value in values) < mean * count:
            low = factor
        else:
            high = factor
    return [_clipped(high * value) for value in values]


def _clipped(value: float) -> int:
    return max(4, min(_LONGEST, round(value)))


def _around(rng: random.Random, length: int) -> int:
    return rng.randint(round(0.85 * length), round(1.15 * length))
