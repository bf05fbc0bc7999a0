"""The table of routes, and the ASGI application that looks requests up in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from octavo.base.errors import clip
from octavo.server.http.errors import ErrorBody, MethodNotAllowed
from octavo.server.http.exchange import Exchange, Receive, Scope, Send
from octavo.server.http.unknown_routes import unknown_route
from octavo.server.openai.protocol.common import WireModel

Handler = Callable[[Exchange], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` may end in `/{name}`: the rest of the request's path, slashes included, is then its parameter.

    The rest describes the route, for the API document: the body's model, the reply's struct, that of a stream's events
    and that of errors, or the media type of a reply that is not JSON.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[WireModel] | None = None
    reply: type[msgspec.Struct] | None = None
    event: Any = None  # a struct, or a union of some
    error: type[msgspec.Struct] = ErrorBody
    stream_type: str = "text/event-stream"
    media_type: str | None = None
    for_admins: bool = False


class Router:
    """Exact paths first, then those with a parameter. A trailing slash makes no difference."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        self._prefixes: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            if route.path.endswith("}"):
                prefix = route.path[: route.path.rindex("{")]
                self._prefixes.setdefault(prefix, {})[route.method] = route
            else:
                self._exact.setdefault(route.path, {})[route.method] = route

        self._suggested = tuple(dict.fromkeys(route.path for route in self.routes if not route.path.endswith("}")))

    def find(self, path: str) -> tuple[dict[str, Route], str]:
        """The routes of a path by method, and the path's parameter. No routes: the path is unknown."""
        exact = self._exact.get(path) or (self._exact.get(path[:-1]) if path.endswith("/") else None)
        if exact:
            return exact, ""
        for prefix, routes in self._prefixes.items():
            if path.startswith(prefix) and len(path) > len(prefix):
                return routes, path[len(prefix) :]
        return {}, ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        routes, exchange.path_param = self.find(exchange.path)
        if not routes:
            raise unknown_route(exchange.path, self._suggested, lambda path: bool(self.find(path)[0]))
        route = routes.get("GET" if exchange.method == "HEAD" else exchange.method)
        if route is None:
            allowed = ", ".join(sorted({*routes, *(["HEAD"] if "GET" in routes else [])}))
            method = clip(exchange.method, 32)
            raise MethodNotAllowed(
                f"{method} is not allowed on {next(iter(routes.values())).path}; use {allowed}.", allowed
            )
        scope["octavo.route"] = route.path
        await route.handler(exchange)
