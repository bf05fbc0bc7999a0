"""The table of routes, and the ASGI application that looks requests up in it."""

from __future__ import annotations

import re
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
    """A `/{name}` of the path is a parameter: within it a segment, at its end the rest of the path, slashes included.

    The rest describes the route, for the API document: the body's model, the reply's struct, that of a stream's events
    and that of errors, or the media type of a reply that is not JSON.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[WireModel] | None = None
    reply: Any = None  # a struct, or a union of some
    event: Any = None  # a struct, or a union of some
    error: type[msgspec.Struct] = ErrorBody
    stream_type: str = "text/event-stream"
    media_type: str | None = None
    query: type[WireModel] | None = None  # what may stand behind the path's question mark
    for_admins: bool = False
    form: type[WireModel] | None = None  # of a body of parts: its fields, with files as strings of bytes


class Router:
    """Exact paths first, then those with parameters, the longest first. A trailing slash makes no difference."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, Route]] = {}
        patterns: dict[str, dict[str, Route]] = {}
        for route in self.routes:
            table = patterns if "{" in route.path else self._exact
            table.setdefault(route.path, {})[route.method] = route
        # `/a/{x}/b` before `/a/{x}`, whose parameter would take the slash.
        longest_first = sorted(patterns, key=lambda path: -path.count("/"))
        self._patterns = [(_pattern(path), patterns[path]) for path in longest_first]
        self._suggested = tuple(self._exact)

    def find(self, path: str) -> tuple[dict[str, Route], tuple[str, ...]]:
        """The routes of a path by method, and the path's parameters. No routes: the path is unknown."""
        exact = self._exact.get(path) or (self._exact.get(path[:-1]) if path.endswith("/") else None)
        if exact:
            return exact, ()
        for pattern, routes in self._patterns:
            if match := pattern.fullmatch(path):
                return routes, match.groups()
        return {}, ()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        routes, exchange.path_params = self.find(exchange.path)
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


def _pattern(path: str) -> re.Pattern[str]:
    parts = [re.escape(part) for part in re.split(r"\{[^}]*\}", path)]
    if path.endswith("}"):
        return re.compile("([^/]+)".join(parts[:-1]) + "(.+)", re.DOTALL)
    return re.compile("([^/]+)".join(parts) + "/?", re.DOTALL)
