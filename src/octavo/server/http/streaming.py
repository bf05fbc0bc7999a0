"""Sends what comes of a request as the events of a stream, or as a whole reply, for all endpoints that generate."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar

from octavo.base.errors import OctavoError
from octavo.served.events import News, PromptReply, Usage
from octavo.server.http.exchange import Exchange
from octavo.server.http.framing import OPENAI_EVENTS
from octavo.server.http.pacing import KeepAlive
from octavo.server.http.sse import event

logger = logging.getLogger(__name__)

T = TypeVar("T")


class ReplyEncoder(Protocol):
    """How an endpoint encodes its reply: as events, or as one body."""

    def events(self, news: News) -> bytes:
        """All events for some news, ready to send; b"" when there is nothing to send."""
        ...

    def last_events(self) -> bytes:
        """What follows the last news, before the framing's own end."""
        ...

    def whole(self, replies: Sequence[PromptReply], usage: Usage) -> Any:
        """The body of a reply that is not streamed."""
        ...


async def stream_events(
    exchange: Exchange,
    stream: AsyncIterator[T],
    encode: Callable[[T], bytes],
    keep_alive: KeepAlive,
    last_events: Callable[[], bytes] = bytes,
) -> None:
    """Send a stream, which may be empty: one write for all that is new, framed as `keep_alive` is.

    Until the reply begins an error raises and gets its own status.
    """
    framing = keep_alive.framing
    try:
        try:
            first = encode(await keep_alive.first(stream))
        except StopAsyncIteration:
            first = b""
        if not exchange.is_begun:
            await exchange.start_stream(framing.headers)
        async with keep_alive.running():
            await keep_alive.write(first)
            async for piece in stream:
                if data := encode(piece):
                    await keep_alive.write(data)
        await exchange.end(last_events() + framing.done)
    except Exception as exc:
        if not exchange.is_begun:
            raise
        if not isinstance(exc, OctavoError):
            logger.exception("stream %s failed", exchange.scope.get("octavo.request_id"))
        await exchange.end(framing.error(exc))


async def send_whole(exchange: Exchange, body: Any, as_stream: bool) -> None:
    """Send a whole reply; `as_stream`: as the only event of a stream, when the reply cannot be streamed (E75)."""
    if not as_stream:
        await exchange.send_json(body)
        return
    await exchange.start_stream(OPENAI_EVENTS.headers)
    await exchange.end(event(body) + OPENAI_EVENTS.done)
