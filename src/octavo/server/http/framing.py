"""How an API frames a stream: the head of the reply, its last bytes, errors within it, and signs of life."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from octavo.server.http.errors import Header
from octavo.server.http.sse import DONE, error_events

_UNBUFFERED: list[Header] = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather events before it passes them on
]


@dataclass(frozen=True, slots=True)
class Framing:
    """`error` spells an exception as the end of a stream that has begun. `keep_alive` b"": an idle stream stays so."""

    content_type: bytes
    error: Callable[[BaseException], bytes]
    done: bytes = b""
    keep_alive: bytes = b""

    @property
    def headers(self) -> list[Header]:
        return [(b"content-type", self.content_type), *_UNBUFFERED]


SSE = b"text/event-stream; charset=utf-8"

#: A comment: readers of events skip it, and proxies see that the connection is alive (E58).
KEEP_ALIVE = b": keep-alive\n\n"
OPENAI_EVENTS = Framing(SSE, error_events, DONE, KEEP_ALIVE)
