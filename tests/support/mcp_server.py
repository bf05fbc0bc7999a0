"""A small MCP server of the package's own: over stdio where this file is run, and over HTTP on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.types import ToolAnnotations


def small_server(waiting: threading.Event | None = None, cancelled: threading.Event | None = None) -> MCPServer:
    """`waiting`: set when `wait` is called; `cancelled`: when that call is ended from outside."""
    server = MCPServer("small")
    counts = {"calls": 0}

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def add(a: int, b: int) -> str:
        """The sum of two numbers."""
        return str(a + b)

    @server.tool()
    def fail(why: str) -> str:
        """Fails."""
        raise ValueError(why)

    @server.tool()
    def write(chars: int) -> str:
        """A long text."""
        return "x" * chars

    @server.tool()
    def environment(name: str) -> str:
        """A variable of the server's environment."""
        return os.environ.get(name, "(none)")

    @server.tool()
    def count() -> str:
        """How often it was called."""
        counts["calls"] += 1
        return str(counts["calls"])

    @server.tool()
    async def wait() -> str:
        """Never answers."""
        if waiting is not None:
            waiting.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if cancelled is not None:
                cancelled.set()
            raise
        return ""

    return server


@dataclass
class Running:
    url: str
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)  # methods, and headers by lower-case name
    under: dict[str, list[tuple[str, dict[str, str]]]] = field(default_factory=dict)  # those of a query, by it
    waiting: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    status: int | None = None  # answers every request from now on
    location: str = ""  # with it: to where they are led

    def apart(self) -> Running:
        """The same server, whose requests are told apart from those of others."""
        query = f"caller={len(self.under)}"
        self.under[query] = []
        return Running(f"{self.url}?{query}", self.under[query])

    @property
    def num_sessions(self) -> int:
        """Those that are open: begun without a session's name, and not ended by DELETE."""
        begun = sum(method == "POST" and "mcp-session-id" not in headers for method, headers in self.requests)
        return begun - sum(method == "DELETE" for method, _ in self.requests)


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Running]:
    """The server over HTTP, in a thread; `options` of `streamable_http_app`."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    run = Running(f"http://127.0.0.1:{listener.getsockname()[1]}/mcp")
    inner = small_server(run.waiting, run.cancelled).streamable_http_app(**options)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            run.under.get(scope["query_string"].decode(), run.requests).append((scope["method"], headers))
            if run.status is not None:
                led = [(b"location", run.location.encode())] if run.location else []
                await send({"type": "http.response.start", "status": run.status, "headers": led})
                await send({"type": "http.response.body", "body": b"no"})
                return
        await inner(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: server.run([listener]), daemon=True)
    thread.start()
    try:
        yield run
    finally:
        server.should_exit = True
        thread.join(10)


if __name__ == "__main__":
    small_server().run("stdio")
