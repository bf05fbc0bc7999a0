"""Errors as Anthropic's API tells them."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from octavo.base.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from octavo.server.http.errors import ErrorInfo, ErrorReply, ShapedError, error_reply
from octavo.server.http.framing import SSE, Framing
from octavo.server.http.sse import event

#: Anthropic's number for a server that has no room for anybody; 429 is about the caller's own quota.
OVERLOADED: Final = 529

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
    OVERLOADED: "overloaded_error",
}


class ThreadsNotServed(InvalidRequest):
    """The request begins or goes on with a conversation that the server is to remember. Clients that are told by this
    code send the whole conversation from then on; to ignore the field would be to answer half of one."""

    code = "thread_unsupported_request"

    def __init__(self) -> None:
        super().__init__("Threads are not served: send the whole conversation, without `thread`.", "thread")


class Details(msgspec.Struct):
    error_code: str


class Error(msgspec.Struct):
    type: str
    message: str
    details: Details | UnsetType = UNSET


class MessagesError(msgspec.Struct, tag_field="type", tag="error"):
    error: Error
    request_id: str


class ErrorEvent(msgspec.Struct, tag_field="type", tag="error"):
    error: Error


def shaped(reply: ErrorReply, request_id: str) -> ShapedError:
    """The error's body, and its number."""
    status = OVERLOADED if reply.body.error.code == Overloaded.code else reply.status
    error = Error(_type(status), _message(reply.body.error))
    if reply.body.error.code == ThreadsNotServed.code:
        error.details = Details(ThreadsNotServed.code)
    body = MessagesError(error, request_id)
    return ShapedError(status, body, [*reply.headers, (b"request-id", request_id.encode())])


def _type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


def _message(error: ErrorInfo) -> str:
    """There is no field for the place of the fault: the message begins with it, as Anthropic's do."""
    message = error.message
    if error.param is not None and not message.startswith((f"{error.param}:", f"`{error.param}`")):
        message = f"{error.param}: {message}"
    if error.code == ContextLengthExceeded.code:
        # By these words agents know that they should compact the conversation.
        message = f"prompt is too long: {message}"
    return message


def _error_event(exc: BaseException) -> bytes:
    reply = shaped(error_reply(exc), "")
    return event(ErrorEvent(reply.body.error), "error")


EVENTS: Final = Framing(SSE, _error_event, keep_alive=event({"type": "ping"}, "ping"))
