"""One session with an MCP server, which lists its tools and calls them. It lives as long as a response is made."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import octavo
from octavo.base.command_line import HIDDEN
from octavo.server.mcp.servers import MCPServer, MCPServers

if TYPE_CHECKING:
    import anyio
    from mcp import ClientSession
    from mcp.types import Tool

    from octavo.server.mcp.transport import CheckedTransport

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Mapping[str, Any])

#: Most tools of one server.
MAX_TOOLS: Final = 1024
#: Shorter values of headers and variables, and paths, are words that may stand in any text.
_MIN_SECRET_CHARS: Final = 8
#: Seconds that a session has to take leave.
_LEAVE_SECONDS: Final = 5.0
#: Codes of JSON-RPC, for what a server did not say itself.
_INTERNAL, _TIMEOUT, _CLOSED = -32603, -32001, -32000
#: What the package says where a server answers with an HTTP error, and with no words of MCP.
_STATUS_ONLY: Final = ("Server returned an error response", "Not Found", "Session terminated")


class MCPFailed(Exception):
    """A server does not do what it was asked. `code`: an HTTP status, or one of JSON-RPC; `kind`: which of them."""

    def __init__(self, message: str, code: int = _INTERNAL, kind: str = "mcp_protocol_error") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.kind = kind


@dataclass(frozen=True)
class Outcome:
    """What a call gave: a text. `is_error`: the tool says that it failed, and the text says why."""

    text: str
    is_error: bool


class _Link:
    """A connection, and the task's own that enters and leaves it: sessions of the package know no other way."""

    def __init__(self) -> None:
        self.ready: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self.closing = asyncio.Event()
        self.scope: anyio.CancelScope | None = None
        self.transport: CheckedTransport | None = None

    def close(self) -> None:
        """Take leave of the server, in the background."""
        import anyio

        is_ready = self.ready.done()
        self.closing.set()
        if self.scope is not None:
            if is_ready:
                self.scope.deadline = anyio.current_time() + _LEAVE_SECONDS
            else:
                self.scope.cancel()


class MCPSession:
    """Connects with its first use, and again behind a failure of the connection."""

    def __init__(self, server: MCPServer, servers: MCPServers, headers: Mapping[str, str]) -> None:
        """`headers`: the caller's, beside those of the operator."""
        self.label = server.label
        self._server = server
        self._servers = servers
        self._headers = {name.lower(): value for name, value in (*server.headers.items(), *headers.items())}
        self._link: _Link | None = None
        self._is_closed = False

    async def tools(self) -> list[dict[str, Any]]:
        """All tools of the server: name, description, input_schema, annotations. Raises `MCPFailed`."""

        async def listed(session: ClientSession) -> list[dict[str, Any]]:
            from mcp.types import PaginatedRequestParams

            tools: list[dict[str, Any]] = []
            cursor: str | None = None
            size = 0
            while True:
                page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
                found = list(map(_as_listed, page.tools))
                tools += found
                size += len(json.dumps(found))
                if len(tools) > MAX_TOOLS:
                    raise MCPFailed(f"the server has more than {MAX_TOOLS} tools")
                if size > self._servers.config.mcp_max_bytes:
                    raise MCPFailed("its list of tools is larger than is read (--mcp-max-bytes)")
                if not page.next_cursor or page.next_cursor == cursor:
                    break
                cursor = page.next_cursor
            return distinct(tools)

        return await self._asked(listed)

    async def call(self, name: str, arguments: dict[str, Any]) -> Outcome:
        """Raises `MCPFailed`."""

        async def called(session: ClientSession) -> Outcome:
            from mcp.types import CallToolRequest, CallToolRequestParams, CallToolResult

            request = CallToolRequest(params=CallToolRequestParams(name=name, arguments=arguments))
            # Not `call_tool`, which matches the result with a schema of the server's: its patterns could take forever.
            result = await session.send_request(request, CallToolResult)
            text = _text_of(result.content, result.structured_content)
            if len(text.encode("utf-8", "replace")) > self._servers.config.mcp_max_bytes:
                raise MCPFailed("its answer is larger than is read (--mcp-max-bytes)")
            return Outcome(text, bool(result.is_error))

        return await self._asked(called)

    def close(self) -> None:
        """Take leave of the server, in the background."""
        self._is_closed = True
        self._drop()

    # ------------------------------------------------------------ inside
    async def _asked(self, work: Callable[[ClientSession], Awaitable[T]]) -> T:
        """What `work` makes of the session, within the time."""
        if "octavo.server.mcp.transport" not in sys.modules:
            await asyncio.to_thread(_load)  # some tenths of a second, in which others' streams go on
        from mcp import MCPError

        seconds = self._servers.config.mcp_timeout
        try:
            async with asyncio.timeout(seconds):
                return await work(await self._session())
        except TimeoutError:
            failed = MCPFailed(f"the server did not answer within {seconds:g} s (--mcp-timeout)", _TIMEOUT)
        except MCPError as exc:
            failed = self._failed(exc.error.message, exc.error.code)
        except MCPFailed as exc:
            failed = exc
        except Exception as exc:
            logger.debug("MCP server %s", self.label, exc_info=True)
            failed = self._failed(f"the server does not answer as MCP says ({type(exc).__name__})")
        failed = MCPFailed(self._without_secrets(failed.message), failed.code, failed.kind)
        logger.warning("MCP server %s: %s", self.label, failed.message)
        raise failed from None

    def _without_secrets(self, text: str) -> str:
        """A server may repeat what it was sent, such as a key that it does not know, or lead to another URL with it."""
        path = urlsplit(self._server.url or "").path
        for value in (*self._headers.values(), *self._server.env.values(), path):
            for secret in (value, value.rpartition(" ")[2]):  # a scheme stands before it
                if len(secret) >= _MIN_SECRET_CHARS:
                    text = text.replace(secret, HIDDEN)
        return text

    def _failed(self, message: str, code: int = _INTERNAL) -> MCPFailed:
        """What went wrong below is what went wrong."""
        transport = self._link.transport if self._link is not None else None
        if transport is not None and transport.failure is not None:
            self._drop()
            return MCPFailed(transport.failure, _CLOSED)
        if transport is not None and transport.status is not None and message in _STATUS_ONLY:
            status = transport.status
            return MCPFailed(f"the server answers with the HTTP status {status}", status, "http_error")
        if code == _CLOSED:
            self._drop()
        return MCPFailed(message[:2000], code)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()

    async def _session(self) -> ClientSession:
        if self._is_closed:
            raise MCPFailed("the session is closed", _CLOSED)
        if self._link is None:
            self._link = _Link()
            task = asyncio.create_task(self._own(self._link))
            self._servers.tasks.add(task)
            task.add_done_callback(self._servers.tasks.discard)
        return await asyncio.shield(self._link.ready)

    async def _own(self, link: _Link) -> None:
        """The task that enters and leaves a connection."""
        import anyio

        ready = link.ready
        try:
            with anyio.CancelScope() as link.scope:
                async with self._servers.places, contextlib.AsyncExitStack() as stack:
                    if link.closing.is_set():
                        return
                    session = await self._connected(link, stack)
                    ready.set_result(session)
                    await link.closing.wait()
        except Exception as exc:
            logger.debug("MCP server %s", self.label, exc_info=True)
            if not ready.done():
                ready.set_exception(self._failed(_first_words(exc), _CLOSED))
        finally:
            if not ready.done():
                ready.set_exception(MCPFailed("the session was closed", _CLOSED))
            ready.exception()  # whoever waited for it may be gone

    async def _connected(self, link: _Link, stack: contextlib.AsyncExitStack) -> ClientSession:
        from mcp import ClientSession, StdioServerParameters
        from mcp.client.stdio import stdio_client
        from mcp.client.streamable_http import streamable_http_client
        from mcp.types import Implementation

        _quiet()
        server = self._server
        if server.command is not None:
            errors = sys.__stderr__ or stack.enter_context(open(os.devnull, "w"))  # noqa: ASYNC230, SIM115
            parameters = StdioServerParameters(
                command=server.command, args=list(server.args), env=dict(server.env), cwd=server.cwd
            )
            streams = await stack.enter_async_context(stdio_client(parameters, errors))
        else:
            import httpx2

            from octavo.server.mcp.transport import CheckedTransport

            config = self._servers.config
            most = 2 * config.mcp_max_bytes + (64 << 10)  # JSON spells some characters in six
            link.transport = CheckedTransport(most, None) if server.is_trusted else CheckedTransport(most)
            timeout = httpx2.Timeout(config.mcp_timeout)
            client = httpx2.AsyncClient(
                transport=link.transport, headers=self._headers, timeout=timeout, trust_env=False
            )
            await stack.enter_async_context(client)
            assert server.url is not None
            streams = await stack.enter_async_context(
                streamable_http_client(server.url, http_client=client, max_sse_event_size=most)
            )
        session = await stack.enter_async_context(
            ClientSession(*streams, client_info=Implementation(name="octavo", version=octavo.__version__))
        )
        await session.initialize()
        return session


def _as_listed(tool: Tool) -> dict[str, Any]:
    notes = tool.annotations
    return {
        "name": tool.name,
        "description": tool.description,
        "input_schema": tool.input_schema,
        "annotations": None if notes is None else notes.model_dump(by_alias=True, exclude_none=True),
    }


def distinct(tools: Iterable[M]) -> list[M]:
    """The first tool of each name: a call could mean no other. They have a "name"."""
    found: dict[str, M] = {}
    for tool in tools:
        found.setdefault(tool["name"], tool)
    return list(found.values())


def _load() -> None:
    for name in ("mcp", "mcp.types", "mcp.client.stdio", "mcp.client.streamable_http", "octavo.server.mcp.transport"):
        importlib.import_module(name)


def _quiet() -> None:
    """The packages log URLs, which may hold keys, and traces of what servers do wrong. What counts is told here."""
    for name in ("mcp", "client", "httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_words(exc: BaseException) -> str:
    from mcp import MCPError

    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    if isinstance(exc, MCPError):
        return exc.error.message
    if isinstance(exc, OSError):
        return f"the server cannot be started: {exc.strerror or exc}"
    return f"the server does not answer as MCP says ({type(exc).__name__})"


def _text_of(content: Sequence[Any], structured: Any) -> str:
    """What a model reads of a result: its texts, and of other parts what they are."""
    parts = []
    for part in content:
        if part.type == "text":
            parts.append(part.text)
        elif part.type == "resource" and getattr(part.resource, "text", None) is not None:
            parts.append(part.resource.text)
        elif part.type == "resource_link":
            parts.append(f"[{part.name}: {part.uri}]")
        else:
            kind = getattr(part, "mime_type", None) or getattr(getattr(part, "resource", None), "mime_type", None)
            parts.append(f"[{kind or part.type}: it cannot be shown as text]")
    if not parts and structured is not None:
        return json.dumps(structured, ensure_ascii=False)
    return "\n".join(parts)
