"""POST /invocations: SageMaker's one path for every kind of request; the body's shape tells which."""

from __future__ import annotations

from octavo.base.errors import InvalidRequest
from octavo.server.http.exchange import Exchange
from octavo.server.http.routing import Handler


class InvocationsHandler:
    def __init__(self, chat: Handler, complete: Handler) -> None:
        self._handlers = {"messages": chat, "prompt": complete}

    async def __call__(self, exchange: Exchange) -> None:
        body = await exchange.read_json()
        exchange.unread(body)
        for name, handler in self._handlers.items():
            if isinstance(body, dict) and name in body:
                await handler(exchange)
                return
        raise InvalidRequest("The body should have `messages`, for chat, or `prompt`, for a text completion.")
