"""Sleep mode: the engine gives its memory back while nobody needs it, and the process stays."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from octavo.base.errors import Asleep
from octavo.client.siblings import NoSiblings, Siblings

logger = logging.getLogger(__name__)

#: 1: the KV cache goes, and a GPU's weights go to the host; 2: the weights go too.
SLEEP_LEVELS = (1, 2)


class SleepMode:
    """Whether the engine sleeps. From the moment that it is to until it is awake requests are refused, in all API
    processes that it has."""

    def __init__(
        self,
        call: Callable[..., Awaitable[Any]],
        end_all: Callable[[], object],
        wait_idle: Callable[[], Awaitable[None]],
        on_level: Callable[[int], None] = lambda level: None,
        siblings: Siblings | None = None,
    ) -> None:
        """`call`: of the engine's methods; `end_all`: ends the requests in flight here; `wait_idle`: until none is
        left; `on_level`: is told each new level."""
        self._call, self._end_all, self._wait_idle, self._on_level = call, end_all, wait_idle, on_level
        self._siblings = siblings or NoSiblings()
        self._siblings.offer("rest", self._rest)
        self._siblings.offer("set_sleep_level", self._set_level)
        self._tasks: set[asyncio.Task[None]] = set()
        self.level = 0  # 0: awake
        self.is_asleep = False  # or about to be

    def check(self) -> None:
        """Raise `Asleep` unless requests are taken."""
        if self.is_asleep:
            raise Asleep("The model is asleep and takes no requests until it is woken (POST /wake_up).")

    async def sleep(self, level: int, *, waits: bool) -> None:
        """Let the engine sleep at `level`, or stay at a deeper one. Requests in flight are ended; `waits`: they are
        waited for. Raises `ServerError`; the engine is then as it was. Goes on when its caller is cancelled."""
        await self._to_the_end(self._sleep(level, waits=waits))

    async def wake_up(self) -> None:
        """Let the engine be as before, likewise. Raises `ServerError`; it sleeps on then."""
        await self._to_the_end(self._wake_up())

    async def _to_the_end(self, change: Coroutine[Any, Any, None]) -> None:
        """What the engine has been told cannot be taken back, and must be known here."""
        task = asyncio.create_task(change)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _sleep(self, level: int, *, waits: bool) -> None:
        async with self._siblings.alone("sleep"):
            if level <= self.level:
                return
            reached = self.level
            try:
                await self._siblings.everywhere("rest", waits)
                await self._call("sleep", level)
                reached = level
                logger.info("the engine sleeps at level %d", level)
            finally:
                await self._siblings.everywhere("set_sleep_level", reached)

    async def _wake_up(self) -> None:
        async with self._siblings.alone("sleep"):
            if not self.level:
                return
            started = time.monotonic()
            await self._call("wake_up")
            await self._siblings.everywhere("set_sleep_level", 0)
            logger.info("the engine woke up in %.1f s", time.monotonic() - started)

    # ------------------------------------------------------------ in each process
    async def _rest(self, waits: bool) -> None:
        """Take no requests, and come to the end of those in flight."""
        self.is_asleep = True
        if not waits:
            self._end_all()
        await self._wait_idle()
        if self._siblings.count > 1:
            # The call that sends the engine to sleep may come over another connection, and overtake what ended these.
            await self._call("ping")

    async def _set_level(self, level: int) -> None:
        is_new = level != self.level
        self.level, self.is_asleep = level, level > 0
        if is_new:
            self._on_level(level)
