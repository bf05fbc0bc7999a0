"""What keeps an idle stream alive."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from octavo.server.http.exchange import Exchange
from octavo.server.http.framing import OPENAI_EVENTS, Framing

T = TypeVar("T")


class KeepAlive:
    """Signs of life on an idle stream. `interval` is in seconds; 0: never."""

    def __init__(self, exchange: Exchange, interval: float, framing: Framing = OPENAI_EVENTS) -> None:
        self._exchange = exchange
        self.framing = framing
        self._interval = interval if framing.keep_alive else 0
        self._last_write = time.monotonic()

    async def first(self, deltas: AsyncIterator[T]) -> T:
        """The first delta. When it is late, the reply begins without it, and a later error is an event."""
        if not self._interval:
            return await anext(deltas)
        task = asyncio.ensure_future(anext(deltas))
        try:
            await asyncio.wait({task}, timeout=self._interval)
            if not task.done():
                await self._exchange.start_stream(self.framing.headers)
                await self._exchange.write(self.framing.keep_alive)
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
        """In the block a sign of life is sent after each `interval` seconds of silence; none once it has ended."""
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
                await self.write(self.framing.keep_alive)
                silence = 0.0
            await asyncio.sleep(self._interval - silence)
