"""From exception to reply: one writer of error bodies for all routes.

The body is `{"error": {"message", "type", "param", "code"}}`, on the routes of other APIs than OpenAI's what these make
of it (`ErrorShape`); status, type and code stand on the class of the exception. Messages are written by octavo: the
text of a foreign exception never leaves the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from octavo.base.errors import InvalidRequest, RequestError, ServerError, clip

#: Most validation errors in one reply, and most characters of each value quoted in it: a reply is never much
#: longer than its request.
MAX_REPORTED_ERRORS = 10
MAX_QUOTED_CHARS = 200


class HostNotAllowed(RequestError):
    """The `Host` header names a host that this server is not."""

    status = 403
    type = "PermissionDeniedError"
    code = "host_not_allowed"


class AdminKeyRequired(RequestError):
    """The key that was sent opens other paths, and not those of administrators."""

    status = 403
    type = "PermissionDeniedError"
    code = "admin_key_required"


class RouteNotFound(RequestError):
    status = 404
    type = "NotFoundError"
    code = "route_not_found"


class RouteNotServed(RouteNotFound):
    """A route of the API, or of another server's, that octavo does not have."""

    code = "route_not_served"


class MethodNotAllowed(RequestError):
    """`allowed` goes into the `Allow` header."""

    status = 405
    type = "MethodNotAllowedError"
    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class UnsupportedMedia(RequestError):
    """The body is compressed, or not in UTF-8."""

    status = 415
    type = "UnsupportedMediaTypeError"
    code = "unsupported_media_type"


class BodyTimeout(RequestError):
    """The client was too slow to send its body."""

    status = 408
    type = "TimeoutError"
    code = "timeout"


class ExpectationFailed(RequestError):
    status = 417
    type = "ExpectationFailedError"


class VersionNotSupported(RequestError):
    """Of HTTP."""

    status = 505
    type = "HTTPVersionNotSupportedError"


class BadFraming(RequestError):
    """Where the request ends depends on who reads it: a proxy in front may see another request in it (smuggling)."""


class HeadersTooLarge(RequestError):
    status = 431
    type = "RequestTooLargeError"


class ErrorInfo(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct):
    error: ErrorInfo


_KINDS: dict[type, str] = {str: "a string", list: "a list", bool: "true or false", type(None): "null"}

Header = tuple[bytes, bytes]
M = TypeVar("M", bound=BaseModel)


class ErrorReply(msgspec.Struct):
    """What an exception looks like from outside."""

    status: int
    body: ErrorBody
    headers: list[Header] = []


class ShapedError(msgspec.Struct):
    """The same in the words of another API than OpenAI's."""

    status: int
    body: Any
    headers: list[Header]


#: How an API tells of an error; the text is the request's id.
ErrorShape = Callable[[ErrorReply, str], ShapedError]


def error_reply(exc: BaseException) -> ErrorReply:
    """The reply for any exception. A foreign exception becomes a 500 that does not show its text."""
    if not isinstance(exc, RequestError | ServerError):
        exc = ServerError("Internal server error.")
    headers: list[Header] = []
    retry_after = getattr(exc, "retry_after", None)
    if retry_after is not None:
        headers.append((b"retry-after", b"%d" % retry_after))
    if exc.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(exc, MethodNotAllowed):
        headers.append((b"allow", exc.allowed.encode()))
    if exc.status in (408, 413) or isinstance(exc, BadFraming):
        headers.append((b"connection", b"close"))  # the rest of the body is not read
    if exc.status == 415:
        headers.append((b"accept-encoding", b"identity"))
    return ErrorReply(exc.status, ErrorBody(ErrorInfo(exc.message, exc.type, exc.param, exc.code)), headers)


def validate_body(model: type[M], body: Any) -> M:
    """`body`, decoded from JSON, as a `model`. Raises `InvalidRequest` naming the first wrong field."""
    if not isinstance(body, dict):
        hint = ""
        if isinstance(body, str) and body.lstrip().startswith("{"):
            hint = " that holds JSON: it was encoded twice"
        raise InvalidRequest(f"The body should be a JSON object; got {_KINDS.get(type(body), 'a number')}{hint}.")
    try:
        return model.model_validate(body)
    except ValidationError as exc:
        raise _invalid_request(exc, body) from None


def _invalid_request(exc: ValidationError, body: Any) -> InvalidRequest:
    errors = exc.errors(include_url=False, include_context=False)
    first_path = _path(errors[0], body)
    lines: dict[str, None] = {}  # an ordered set
    for error in errors[:MAX_REPORTED_ERRORS]:
        text = f"{_path(error, body) or 'body'}: {error['msg']}"
        if error["type"] != "missing":
            text += f", got {_quote(error['input'])}"
        lines[text] = None
    if len(errors) > MAX_REPORTED_ERRORS:
        lines[f"and {len(errors) - MAX_REPORTED_ERRORS} more"] = None
    return InvalidRequest("; ".join(lines), first_path or None)


def _path(error: ErrorDetails, body: Any) -> str:
    """The dotted path of a field. Names of union members, which pydantic adds to `loc`, are left out.

    A component counts when it leads on in the body, or when it is the last one of a key that is missing.
    """
    loc, is_missing = error["loc"], error["type"] == "missing"
    parts: list[str] = []
    node = body
    for i, key in enumerate(loc):
        if isinstance(node, dict):
            key = str(key)  # keys of `logit_bias` are converted before they are checked
            if key not in node and (i < len(loc) - 1 or not is_missing):
                continue
            parts.append(key)
            node = node.get(key)
        elif isinstance(node, list) and isinstance(key, int):
            parts.append(str(key))
            node = node[key] if key < len(node) else None
    return clip(".".join(parts), MAX_QUOTED_CHARS)


def _quote(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return clip(repr(value[: MAX_QUOTED_CHARS + 1]), MAX_QUOTED_CHARS)
    if isinstance(value, int) and not isinstance(value, bool):
        return clip(repr(value), MAX_QUOTED_CHARS)  # may be wider than the encoder takes
    return clip(msgspec.json.encode(value).decode(), MAX_QUOTED_CHARS)
