"""Requests at a rate and at most so many at a time, and the figures of what came back.

A level is one measurement. Requests arrive at random times of the given rate, all at once when it is infinite; one that
finds all streams taken waits here, and its time starts when it is sent.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.bench.datasets import Prompt
from octavo.bench.http import Reply
from octavo.bench.stats import spread_ms

#: Distinct errors that a result lists.
_ERRORS_LISTED = 5


class Clock(Protocol):
    def now(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class WallClock:
    def now(self) -> float:
        return time.perf_counter()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class Level:
    """What one measurement asks for. `max_concurrency` None: no bound."""

    max_concurrency: int | None
    request_rate: float  # a second; may be infinite


@dataclass(frozen=True)
class Beside:
    """Prompts that arrive beside a level's own, every `interval` seconds."""

    make: Callable[[], Prompt]
    interval: float


Send = Callable[[Prompt], Coroutine[Any, Any, Reply]]


def arrival_times(count: int, rate: float, rng: random.Random) -> list[float]:
    """Seconds from the start: a Poisson process, or zeros when the rate is infinite."""
    if rate == float("inf"):
        return [0.0] * count
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.expovariate(rate)
    return times


async def run_level(
    level: Level,
    prompts: Sequence[Prompt],
    send: Send,
    rng: random.Random,
    *,
    beside: Beside | None = None,
    on_done: Callable[[], object] = lambda: None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Send all prompts and wait for all replies; those of `beside` are sent meanwhile and end with the level."""
    clock = clock or WallClock()
    slots = asyncio.Semaphore(level.max_concurrency or len(prompts))
    replies: list[Reply] = []

    async def one(prompt: Prompt) -> None:
        async with slots:
            replies.append(await send(prompt))
        on_done()

    start = clock.now()
    others = asyncio.create_task(_send_beside(beside, send, clock)) if beside else None
    async with asyncio.TaskGroup() as group:
        for prompt, due in zip(prompts, arrival_times(len(prompts), level.request_rate, rng), strict=True):
            wait = start + due - clock.now()
            if wait > 0:
                await clock.sleep(wait)
            group.create_task(one(prompt))
    seconds = clock.now() - start
    if others is not None:
        others.cancel()
        await asyncio.gather(others, return_exceptions=True)
    return summary(level, replies, seconds)


async def _send_beside(beside: Beside, send: Send, clock: Clock) -> None:
    """One prompt after the other, at even intervals; they do not wait for each other's replies."""
    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(send(beside.make()))
            await clock.sleep(beside.interval)


def summary(level: Level, replies: Sequence[Reply], seconds: float) -> dict[str, Any]:
    """The figures of one level: of the requests that succeeded, and how many did not."""
    good = [reply for reply in replies if reply.error is None]
    errors = Counter(reply.error for reply in replies if reply.error is not None)
    knows_prompts = all(reply.prompt_tokens is not None for reply in good)
    prompt_tokens = sum(reply.prompt_tokens or 0 for reply in good) if knows_prompts else None
    output_tokens = sum(reply.output_tokens for reply in good)
    return {
        "max_concurrency": level.max_concurrency,
        "request_rate": None if level.request_rate == float("inf") else level.request_rate,
        "completed": len(good),
        "failed": len(replies) - len(good),
        "errors": dict(errors.most_common(_ERRORS_LISTED)),
        "duration_s": round(seconds, 3),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": round(len(good) / seconds, 3),
        "output_tok_s": round(output_tokens / seconds, 2),
        "total_tok_s": None if prompt_tokens is None else round((prompt_tokens + output_tokens) / seconds, 2),
        **_times(good),
    }


def _times(replies: Sequence[Reply]) -> dict[str, Any]:
    """To the first token; between pieces; per token after the first; from beginning to end."""
    gaps = [b - a for r in replies for a, b in zip(r.stamps, r.stamps[1:], strict=False)]
    each = [(r.stamps[-1] - r.stamps[0]) / (r.output_tokens - 1) for r in replies if r.output_tokens > 1]
    return {
        "ttft_ms": spread_ms([r.stamps[0] - r.start for r in replies]),
        "tpot_ms": spread_ms(each),
        "itl_ms": spread_ms(gaps),
        "e2el_ms": spread_ms([r.end - r.start for r in replies]),
    }
