"""From the deltas of generation to the events of a stream: what the endpoints that stream share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from octavo.errors import OctavoError
from octavo.generation import GenerationDelta
from octavo.server.exchange import Exchange
from octavo.server.pacing import KeepAlive
from octavo.server.sse import DONE, error_events, event
from octavo.server.state import DeltaStream

logger = logging.getLogger(__name__)


class EventWriter(Protocol):
    """How an endpoint spells its stream."""

    def events(self, place: int, delta: GenerationDelta) -> bytes:
        """All events for one delta, ready to send; b"" when there is nothing to say."""
        ...

    def last_events(self) -> bytes:
        """What follows the last delta, before [DONE]."""
        ...


async def stream_events(
    exchange: Exchange,
    deltas: AsyncIterator[tuple[int, GenerationDelta]],
    writer: EventWriter,
    keep_alive: KeepAlive,
) -> None:
    """Send a stream: one write a delta. Until the reply begins an error raises and gets its own status (E50)."""
    try:
        first = await keep_alive.first(deltas)
        if not exchange.is_begun:
            await exchange.start_events()
        async with keep_alive.running():
            await keep_alive.write(writer.events(*first))
            async for place, delta in deltas:
                if data := writer.events(place, delta):
                    await keep_alive.write(data)
        await exchange.end(writer.last_events() + DONE)
    except Exception as exc:
        if not exchange.is_begun:
            raise
        if not isinstance(exc, OctavoError):
            logger.exception("stream %s failed", exchange.scope.get("octavo.request_id"))
        await exchange.end(error_events(exc))


async def send_whole(exchange: Exchange, body: Any, as_stream: bool) -> None:
    """Send a whole reply; to who asked for a stream, though there can be none, as its only event (E75)."""
    if not as_stream:
        await exchange.send_json(body)
        return
    await exchange.start_events()
    await exchange.end(event(body) + DONE)


class UsageCount:
    """Running token counts of a reply over all its prompts."""

    def __init__(self) -> None:
        self._last: dict[int, GenerationDelta] = {}

    def add(self, place: int, delta: GenerationDelta) -> None:
        """Each delta carries its request's totals so far, so the newest one counts."""
        self._last[place] = delta

    def totals(self) -> tuple[int, int, int]:
        """Prompt, cached and output tokens."""
        deltas = self._last.values()
        return (
            sum(d.num_prompt_tokens for d in deltas),
            sum(d.num_cached_tokens for d in deltas),
            sum(d.num_output_tokens for d in deltas),
        )


async def merged(streams: list[DeltaStream]) -> AsyncGenerator[tuple[int, GenerationDelta], None]:
    """One task a stream, and a queue with room for one delta of each: a slow reader still gets merged deltas."""
    queue: asyncio.Queue[tuple[int, GenerationDelta | Exception | None]] = asyncio.Queue(len(streams))

    async def pump(place: int, stream: DeltaStream) -> None:
        end: Exception | None = None
        try:
            async for delta in stream:
                await queue.put((place, delta))
        except Exception as exc:  # noqa: BLE001  (raised again by the reader)
            end = exc
        await queue.put((place, end))

    tasks = [asyncio.create_task(pump(place, stream)) for place, stream in enumerate(streams)]
    try:
        num_open = len(tasks)
        while num_open:
            place, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield place, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
