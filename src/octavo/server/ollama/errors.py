"""Errors as Ollama's API tells them."""

from __future__ import annotations

from typing import Final

import msgspec

from octavo.server.http.errors import ErrorReply, ShapedError, error_reply
from octavo.server.http.framing import Framing

NDJSON: Final = "application/x-ndjson"


class OllamaError(msgspec.Struct):
    error: str


def shaped(reply: ErrorReply, request_id: str) -> ShapedError:
    return ShapedError(reply.status, OllamaError(_message(reply)), reply.headers)


def _message(reply: ErrorReply) -> str:
    """There is no field for the place of the fault, so that the message must name it."""
    error = reply.body.error
    if error.param is None or error.param in error.message:
        return error.message
    return f"{error.param}: {error.message}"


def line(body: msgspec.Struct) -> bytes:
    """One line of a stream."""
    return msgspec.json.encode(body) + b"\n"


def _error_line(exc: BaseException) -> bytes:
    return line(OllamaError(_message(error_reply(exc))))


#: Readers take every line for JSON, so that an idle stream stays idle.
LINES: Final = Framing(NDJSON.encode(), _error_line)
