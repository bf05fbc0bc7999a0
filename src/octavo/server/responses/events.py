"""Sends the events of a response as they come."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from octavo.server.http.errors import error_reply
from octavo.server.http.exchange import Exchange
from octavo.server.http.framing import KEEP_ALIVE, SSE, Framing
from octavo.server.http.pacing import KeepAlive
from octavo.server.http.sse import event
from octavo.server.http.streaming import stream_events


def _error_event(exc: BaseException) -> bytes:
    """What refused a response that did not begin, where the reply has begun."""
    told = error_reply(exc).body.error
    body = {"type": "error", "code": told.code, "message": told.message, "param": told.param, "sequence_number": 0}
    return event(body, "error")


#: A stream ends with the response's last event: there is no `[DONE]`.
EVENTS: Final = Framing(SSE, _error_event, keep_alive=KEEP_ALIVE)


async def send_events(exchange: Exchange, events: AsyncIterator[list[bytes]], keep_alive_interval: float) -> None:
    """Until the reply begins an error raises and gets its own status."""
    await stream_events(exchange, events, b"".join, KeepAlive(exchange, keep_alive_interval, EVENTS))
