"""When the events of a stream are sent: several tokens in one, and a sign of life when there are none."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from octavo.generation import CompletionDelta, GenerationDelta
from octavo.server.exchange import Exchange

#: A comment: readers of events skip it, proxies see that the connection lives (E58).
KEEP_ALIVE = b": keep-alive\n\n"

T = TypeVar("T")
Placed = tuple[int, GenerationDelta]


async def at_intervals(deltas: AsyncIterator[Placed], interval: int) -> AsyncGenerator[Placed, None]:
    """E60: the same stream with at least `interval` tokens in a choice's delta.

    A choice's first text and its end are never delayed. When the stream fails, what was held comes before the error.
    """
    held: dict[tuple[int, int], CompletionDelta] = {}
    begun: set[tuple[int, int]] = set()
    last: dict[int, GenerationDelta] = {}
    try:
        async for place, delta in deltas:
            last[place] = delta
            ready = []
            for output in delta.outputs:
                key = (place, output.index)
                if key in held:
                    output = _joined(held.pop(key), output)
                is_due = len(output.token_ids) >= interval or output.finish_reason is not None
                if is_due or (key not in begun and output.text):
                    begun.add(key)
                    ready.append(output)
                else:
                    held[key] = output
            if ready or delta.finished:
                yield place, replace(delta, outputs=ready)
    except Exception:
        for (place, _), output in held.items():
            yield place, replace(last[place], outputs=[output])
        raise


def _joined(first: CompletionDelta, second: CompletionDelta) -> CompletionDelta:
    logprobs = None
    if first.logprobs is not None or second.logprobs is not None:
        logprobs = [*(first.logprobs or []), *(second.logprobs or [])]
    return replace(
        second, text=first.text + second.text, token_ids=first.token_ids + second.token_ids, logprobs=logprobs
    )


class KeepAlive:
    """Comments on an idle stream. `interval` is in seconds; 0: never."""

    def __init__(self, exchange: Exchange, interval: float) -> None:
        self._exchange = exchange
        self._interval = interval
        self._last_write = time.monotonic()

    async def first(self, deltas: AsyncIterator[T]) -> T:
        """The first delta. When it is late the reply begins without it; an error then comes as an event."""
        if not self._interval:
            return await anext(deltas)
        task = asyncio.ensure_future(anext(deltas))
        try:
            await asyncio.wait({task}, timeout=self._interval)
            if not task.done():
                await self._exchange.start_events()
                await self._exchange.write(KEEP_ALIVE)
                async with self.running():
                    await asyncio.wait({task})
            return await task
        finally:
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def write(self, data: bytes) -> None:
        self._last_write = time.monotonic()
        await self._exchange.write(data)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """In the block a silence of `interval` seconds is broken. Nothing is written once it ends."""
        if not self._interval:
            yield
            return
        self._last_write = time.monotonic()
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            silence = time.monotonic() - self._last_write
            if silence >= self._interval:
                await self.write(KEEP_ALIVE)
                silence = 0.0
            await asyncio.sleep(self._interval - silence)
