"""One HTTP exchange: the request as it arrives, and the reply as it leaves, over raw ASGI.

Frameworks' request and response objects are not used: the stream of tokens is the busiest path of the API
process, and each layer between costs more than all the rest (a middleware that wraps the body triples it).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from octavo.errors import InvalidRequest, RequestTooLarge
from octavo.server.errors import BodyTimeout, Header

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Most bytes of a request body, seconds that a client gets to send one, and the deepest nesting of its JSON.
MAX_BODY_BYTES = 16 * 1024 * 1024
BODY_TIMEOUT_SECONDS = 60.0
MAX_JSON_DEPTH = 64

_JSON = (b"content-type", b"application/json")
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather events before it passes them on
]


class ClientDisconnected(Exception):
    """Nobody is left to answer."""


class Exchange:
    """The request and the one reply to it. Handlers own it for the time of the call."""

    __slots__ = ("_receive", "_send", "extra_headers", "method", "path", "path_param", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.path_param = ""  # the rest of the path, for routes that end in one
        self.extra_headers: list[Header] = []  # sent with whatever reply follows

    def header(self, name: bytes) -> str | None:
        """The first header of that lower-case name."""
        return next((value.decode("latin-1") for key, value in self.scope["headers"] if key == name), None)

    # ------------------------------------------------------------ request
    async def read_json(self) -> Any:
        """The decoded body. Raises `InvalidRequest`, `RequestTooLarge`, `BodyTimeout` or `ClientDisconnected`."""
        content_type = (self.header(b"content-type") or "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            # E6. A page of another origin can post text/plain without asking, but not this.
            raise InvalidRequest("Unsupported Media Type: Only 'application/json' is allowed")
        if (self.header(b"content-encoding") or "identity").lower() != "identity":
            raise InvalidRequest("Compressed request bodies are not supported.")
        return decode_json(await self.read_body())

    async def read_body(self) -> bytes:
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > MAX_BODY_BYTES:
            raise RequestTooLarge(_TOO_LARGE)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnected
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > MAX_BODY_BYTES:
                        raise RequestTooLarge(_TOO_LARGE)
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise BodyTimeout("The request body did not arrive in time.") from None

    @asynccontextmanager
    async def cancelled_on_disconnect(self) -> AsyncIterator[None]:
        """The block is cancelled, and `ClientDisconnected` raised from it, when the client goes away.

        To be entered after the body is read: what is received in the block is thrown away.
        """
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await self._receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            # Our own cancellation is taken back; one from outside goes on.
            if gone and task.uncancel() == 0:
                raise ClientDisconnected from None
            raise
        finally:
            watcher.cancel()

    # ------------------------------------------------------------ reply
    async def send_json(self, body: Any, status: int = 200, headers: list[Header] | None = None) -> None:
        """Send `body`, a msgspec struct or plain value, as the whole reply."""
        await self.send_bytes(msgspec.json.encode(body), status, [_JSON, *(headers or [])])

    async def send_bytes(self, body: bytes, status: int, headers: list[Header]) -> None:
        await self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def start_events(self) -> None:
        """Begin a stream of server-sent events; `write` and `end` follow."""
        await self._start(200, _SSE)

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(self, status: int, headers: list[Header]) -> None:
        """The scope tells the layers around that the reply began, and they tell the request's id."""
        self.scope["octavo.status"] = status
        request_id = (b"x-request-id", self.scope["octavo.request_id"].encode())
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *self.extra_headers, request_id],
            }
        )


_TOO_LARGE = f"The request body is larger than {MAX_BODY_BYTES} bytes."


def decode_json(data: bytes) -> Any:
    """Strict JSON: no NaN or Infinity, no numbers beyond float64, valid UTF-8, bounded depth."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # The decoder's text stays in the house: it may quote the body.
        raise InvalidRequest("The body is not valid JSON.") from None
    except RecursionError:
        raise InvalidRequest(_TOO_DEEP) from None
    # The number of brackets bounds the depth; nearly every request ends here.
    if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise InvalidRequest(_TOO_DEEP)
    return value


_TOO_DEEP = f"The body is nested deeper than {MAX_JSON_DEPTH} levels."


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True
