"""Sends the events of a response as they come."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from octavo.base.errors import OctavoError
from octavo.server.http.errors import error_reply
from octavo.server.http.exchange import Exchange
from octavo.server.http.framing import OPENAI_EVENTS
from octavo.server.http.pacing import KeepAlive
from octavo.server.http.sse import event

logger = logging.getLogger(__name__)


async def send_events(exchange: Exchange, events: AsyncIterator[list[bytes]], keep_alive: KeepAlive) -> None:
    """Until the reply begins an error raises and gets its own status. A stream ends with the response: no `[DONE]`."""
    try:
        first = await keep_alive.first(events)
    except StopAsyncIteration:  # the last event was the one that the client had already
        first = []
    except Exception as exc:
        if not exchange.is_begun:
            raise
        await exchange.end(_error(exc))
        return
    if not exchange.is_begun:
        await exchange.start_stream(OPENAI_EVENTS.headers)
    async with keep_alive.running():
        await keep_alive.write(b"".join(first))
        async for more in events:
            if more:
                await keep_alive.write(b"".join(more))
    await exchange.end()


def _error(exc: Exception) -> bytes:
    """What refused a response that did not begin, where the reply has begun."""
    told = error_reply(exc).body.error
    if not isinstance(exc, OctavoError):
        logger.error("a stream of events failed", exc_info=exc)
    body = {"type": "error", "code": told.code, "message": told.message, "param": told.param, "sequence_number": 0}
    return b"event: error\n" + event(body)
