"""ASGI middleware that a user brings: a class that takes the application, or a function as Starlette has them."""

from __future__ import annotations

import importlib
import inspect
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from octavo.base.errors import InvalidConfig
from octavo.server.dialects import error_shape
from octavo.server.http.errors import error_reply
from octavo.server.http.exchange import ASGIApp, Exchange, Receive, Scope, Send

logger = logging.getLogger(__name__)


def load_middleware(names: Sequence[str]) -> list[Any]:
    """The classes and functions of `module.name`. Raises `InvalidConfig` for what cannot be one."""
    return [_load(name) for name in names]


def _load(name: str) -> Any:
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise InvalidConfig(f"--middleware {name}: write module.name")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as exc:  # whatever the module does while it is imported
        if isinstance(exc, ModuleNotFoundError) and exc.name and (module_name + ".").startswith(exc.name + "."):
            raise InvalidConfig(f"--middleware {name}: there is no module {exc.name}; is it on PYTHONPATH?") from exc
        raise InvalidConfig(f"--middleware {name}: {type(exc).__name__}: {exc}") from exc
    if not (inspect.isclass(found) or inspect.iscoroutinefunction(found)):
        raise InvalidConfig(f"--middleware {name} is neither a class nor an async function")
    return found


def with_middleware(app: ASGIApp, names: Sequence[str]) -> ASGIApp:
    """`app` inside the middleware, of which the last is outermost. It sees every request and every reply."""
    if not names:
        return app
    for found in load_middleware(names):
        if isinstance(found, type):
            app = found(app)
        else:
            from starlette.middleware.base import BaseHTTPMiddleware  # rarely needed, and slow to import

            app = BaseHTTPMiddleware(app, dispatch=found)
    return _Guard(app)


class _Guard:
    """Answers for middleware that fails, as the server does for itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def noted(message: Any) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as exc:
            if is_begun:
                raise  # all that is left is to cut the connection
            logger.exception("middleware failed")
            request_id = scope.setdefault("octavo.request_id", uuid.uuid4().hex)
            told, shape = error_reply(exc), error_shape(scope)
            reply = told if shape is None else shape(told, request_id)
            await Exchange(scope, receive, send).send_json(reply.body, reply.status, reply.headers)
