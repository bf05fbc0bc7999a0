"""Questions between the API processes and their parent: what is offered by name, answered; and errors on the way."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from octavo.base.errors import (
    Aborted,
    Asleep,
    ContextLengthExceeded,
    EngineDead,
    InvalidRequest,
    ModelNotFound,
    OctavoError,
    RequestError,
    ServerError,
    ShuttingDown,
)
from octavo.client.siblings import Offer
from octavo.server.responses.store import StoreFailed
from octavo.wire.api_messages import Answer, Failure, Ran
from octavo.wire.transport import AsyncConnection

logger = logging.getLogger(__name__)

_ERRORS: Final[dict[str, type[OctavoError]]] = {
    kind.__name__: kind
    for kind in (
        Aborted, Asleep, ContextLengthExceeded, EngineDead, InvalidRequest, ModelNotFound, ServerError, ShuttingDown,
        StoreFailed,
    )
}  # fmt: skip


async def answered(offers: Mapping[str, Offer], name: str, args: tuple[Any, ...]) -> tuple[Any, Failure | None]:
    """What is offered by this name, done: the result, or what went wrong."""
    try:
        return await offers[name](*args), None
    except OctavoError as exc:
        return None, Failure(type(exc).__name__, exc.message, getattr(exc, "param", None))
    except Exception as exc:
        logger.exception("%s failed", name)
        return None, Failure("ServerError", f"Internal error: {type(exc).__name__}.")


def reply(
    connection: AsyncConnection[Any],
    kind: type[Answer] | type[Ran],
    number: int,
    result: Any,
    failure: Failure | None,
) -> None:
    """Send what became of a question. Somebody waits for it, also where the result is nothing that can be sent.

    Raises `TransportError` when the connection is closed.
    """
    try:
        connection.send(kind(number, result, failure))
    except Exception as exc:
        connection.send(kind(number, failure=Failure("ServerError", f"Internal error: {type(exc).__name__}.")))
        logger.exception("what another process asked for could not be sent")


def error_of(failure: Failure) -> OctavoError:
    """The error that another process had."""
    kind = _ERRORS.get(failure.error, ServerError)
    return kind(failure.message, failure.param) if issubclass(kind, RequestError) else kind(failure.message)
