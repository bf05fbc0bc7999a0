"""Server-sent events: one `data:` line of JSON each, and `[DONE]` last (E50). What the events say is not known here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from octavo.server.http.errors import error_reply

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def event(body: Any, name: str | None = None) -> bytes:
    """One event, with a line of its name where it has one. JSON never holds a raw newline, so one `data:` line is
    always enough."""
    head = b"data: " if name is None else b"event: %b\ndata: " % name.encode()
    return head + _encoder.encode(body) + b"\n\n"


class TextEvent:
    """Events that differ in one string only, which is nearly all of a stream's: the rest is encoded once.

    `TextEvent(make, name)(text)` is `event(make(text), name)`, at a third of its time. The string must come after
    all others that a caller may choose.
    """

    __slots__ = ("_head", "_tail")

    def __init__(self, make: Callable[[str], Any], name: str | None = None) -> None:
        self._head, _, self._tail = event(make(_MARK), name).rpartition(_encoder.encode(_MARK))

    def __call__(self, text: str) -> bytes:
        return self._head + _encoder.encode(text) + self._tail


_MARK = "\0"


def error_events(exc: BaseException) -> bytes:
    """The end of a stream that failed after its first byte: the error as an event, then `[DONE]` (E14)."""
    return event(error_reply(exc).body) + DONE
