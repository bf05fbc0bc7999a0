"""Sends the events of a response as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator

from octavo.server.http.exchange import Exchange
from octavo.server.http.pacing import KeepAlive
from octavo.server.http.sse import error_events


async def send_events(exchange: Exchange, events: AsyncIterator[list[bytes]], keep_alive: KeepAlive) -> None:
    """Until the reply begins an error raises and gets its own status. A stream ends with the response: no `[DONE]`."""
    try:
        first = await keep_alive.first(events)
    except StopAsyncIteration:  # the last event was the one that the client had already
        first = []
    except Exception as exc:
        if not exchange.is_begun:
            raise
        await exchange.end(error_events(exc))
        return
    if not exchange.is_begun:
        await exchange.start_events()
    async with keep_alive.running():
        await keep_alive.write(b"".join(first))
        async for more in events:
            if more:
                await keep_alive.write(b"".join(more))
    await exchange.end()
