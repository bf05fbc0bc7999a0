"""The exceptions of octavo. HTTP status, OpenAI error type and code stand on the class.

    OctavoError
    +-- RequestError (400)              the caller's fault; the engine never sees such a request
    |   +-- InvalidRequest(param)
    |   +-- ContextLengthExceeded       code context_length_exceeded
    |   +-- Unauthorized (401)
    |   +-- ModelNotFound (404)
    |   +-- RequestTooLarge (413)
    |   +-- Overloaded (429)            Retry-After
    +-- ServerError (500)
    |   +-- EngineDead (503)
    |   +-- ShuttingDown (503)          Retry-After
    |   +-- Asleep (503)
    |   +-- Aborted (410)               by an administrator
    +-- StartupError                    exit code 1, one message, no traceback
        +-- InvalidConfig               exit code 2
        +-- CheckpointError
        +-- DeviceError

`ValueError` is never turned into a 400: a bug stays a 500.
"""

from __future__ import annotations

from typing import ClassVar


def clip(text: str, limit: int) -> str:
    """`text`, of which a message tells at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


class OctavoError(Exception):
    """Root of all errors that octavo raises on purpose. The message is written for the user."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class RequestError(OctavoError):
    """The request is at fault. `param` is the dotted path of the field, or None."""

    status: ClassVar[int] = 400
    type: ClassVar[str] = "BadRequestError"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(RequestError):
    """A field has a wrong type or value; `param` names it."""


def unusable_adapter(name: str, reason: str, param: str) -> InvalidRequest:
    """`reason` names its file, and the tensor that does not fit."""
    return InvalidRequest(f"The adapter `{clip(name, 64)}` cannot be used: {reason}", param)


class ContextLengthExceeded(RequestError):
    """The prompt, or the prompt and the tokens asked for, do not fit the context or the KV cache."""

    code = "context_length_exceeded"


class Unauthorized(RequestError):
    status = 401
    type = "AuthenticationError"
    code = "invalid_api_key"


class ModelNotFound(RequestError):
    status = 404
    type = "NotFoundError"
    code = "model_not_found"


class RequestTooLarge(RequestError):
    status = 413
    type = "RequestTooLargeError"


class Overloaded(RequestError):
    """Too many requests are waiting. `retry_after` is in seconds; `reason` names the limit, for metrics."""

    status = 429
    type = "RateLimitError"
    code = "overloaded"

    def __init__(self, message: str, retry_after: int = 1, reason: str = "") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class ServerError(OctavoError):
    """The server is at fault."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "InternalServerError"
    code: ClassVar[str | None] = None
    param: ClassVar[None] = None


class EngineDead(ServerError):
    """The engine process died or hangs; nothing can be generated until the server is started again."""

    status = 503
    type = "ServiceUnavailableError"
    code = "engine_dead"


class ShuttingDown(ServerError):
    """The server drains and takes no new work. `retry_after` is in seconds."""

    status = 503
    type = "ServiceUnavailableError"
    code = "shutting_down"
    retry_after: ClassVar[int] = 5


class Asleep(ServerError):
    """The engine sleeps, as an administrator asked, and takes no work until it is woken."""

    status = 503
    type = "ServiceUnavailableError"
    code = "asleep"


class Aborted(ServerError):
    """An administrator ended the request. The status is one after which no client sends it again by itself."""

    status = 410
    type = "AbortedError"
    code = "request_aborted"

    def __init__(self, message: str = "An administrator ended this request.") -> None:
        super().__init__(message)


class StartupError(OctavoError):
    """The server cannot start. The command line prints the message and exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class InvalidConfig(StartupError):
    """A flag, a key of the config file or an environment variable is wrong."""

    exit_code = 2


class CheckpointError(StartupError):
    """The model's files are missing, damaged or of a kind that octavo does not support."""


class DeviceError(StartupError):
    """The device lacks what the configuration asks for (memory, instructions, driver)."""
