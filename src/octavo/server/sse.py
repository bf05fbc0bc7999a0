"""Server-sent events: the framing of E50, and nothing of what the events say."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.server.errors import error_reply

DONE = b"data: [DONE]\n\n"

_encoder = msgspec.json.Encoder()


def event(body: Any) -> bytes:
    """One event. JSON never holds a raw newline, so one `data:` line is always enough."""
    return b"data: " + _encoder.encode(body) + b"\n\n"


def error_events(exc: BaseException) -> bytes:
    """The end of a stream that failed after its first byte (E14)."""
    return event(error_reply(exc).body) + DONE
