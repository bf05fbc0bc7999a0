"""One HTTP exchange: the request as it arrives, and the reply as it leaves, over raw ASGI.

Frameworks' request and response objects are not used: the stream of tokens is the busiest path of the API
process, and each layer between costs more than all the rest (a middleware that wraps the body triples it).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import msgspec

from octavo.base.errors import InvalidRequest, RequestTooLarge, clip
from octavo.server.http.errors import BodyTimeout, Header, UnsupportedMedia
from octavo.server.http.json_errors import json_fault
from octavo.server.http.multipart import Form, boundary_of, read_form

Scope = MutableMapping[str, Any]
ASGIMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[ASGIMessage]]
Send = Callable[[ASGIMessage], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_CHARSET = re.compile(r"(?:^|;)\s*charset\s*=\s*([^;\s]*)", re.IGNORECASE)
_CLOSE = (b"connection", b"close")
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds that hold before a body is parsed. `seconds` is the time that a client has to send it."""

    max_bytes: int = 16 * 1024 * 1024
    max_depth: int = 64
    seconds: float = 60.0


class ClientDisconnected(Exception):
    """Nobody is left to answer."""


def header_of(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that lower-case name."""
    return next((value for key, value in scope["headers"] if key == name), None)


class Exchange:
    """The request and the one reply to it. Handlers own it for the time of the call."""

    __slots__ = ("_receive", "_send", "_unread", "extra_headers", "method", "path", "path_params", "scope")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._unread: list[Any] = []  # a body that was read and put back
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.path_params: tuple[str, ...] = ()  # what stands for the parameters of the route's path
        self.extra_headers: list[Header] = []  # sent with whatever reply follows

    def header(self, name: bytes) -> str | None:
        """The first header of that lower-case name."""
        value = header_of(self.scope, name)
        return None if value is None else value.decode("latin-1")

    def query(self) -> dict[str, list[str]]:
        """What stands behind the path's question mark, by name."""
        return parse_qs(self.scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)

    @property
    def owner(self) -> str:
        """Whose request this is: a digest of the key that opened it; "" on a server without keys."""
        owner: str = self.scope.get("octavo.owner", "")
        return owner

    @property
    def is_begun(self) -> bool:
        """The head of the reply was sent."""
        return "octavo.status" in self.scope

    @property
    def limits(self) -> BodyLimits:
        limits: BodyLimits = self.scope.get("octavo.limits") or BodyLimits()
        return limits

    # ------------------------------------------------------------ request
    async def read_json(self, *, any_type: bool = False) -> Any:
        """The decoded body. `any_type`: whatever it is said to be, unless a page of another origin may have sent it.

        Raises `InvalidRequest`, `UnsupportedMedia`, `RequestTooLarge`, `BodyTimeout` or `ClientDisconnected`.
        """
        if self._unread:
            return self._unread.pop()
        self._check_content_headers(any_type=any_type)
        return decode_json(await self.read_body(), self.limits.max_depth)

    async def read_form(self, max_bytes: int) -> Form:
        """The parts of the body, which may have so many bytes or as many as any other. Raises as `read_json`."""
        boundary = boundary_of(self.header(b"content-type") or "")
        self._check_encoding()
        own = self.limits.max_bytes
        flag = "--max-body-bytes" if own >= max_bytes else "--max-media-bytes"
        body = await self.read_body(max(own, max_bytes), flag)
        return await asyncio.to_thread(read_form, body, boundary)

    def unread(self, body: Any) -> None:
        """Put a decoded body back, for another handler to read it."""
        self._unread.append(body)

    def _check_content_headers(self, *, any_type: bool) -> None:
        """Refuse what is not sent as plain JSON in UTF-8, before a byte of it is read."""
        content_type, _, parameters = (self.header(b"content-type") or "").partition(";")
        is_of_page = self.header(b"origin") is not None or self.header(b"sec-fetch-site") is not None
        if content_type.strip().lower() != "application/json" and (is_of_page or not any_type):
            # A page of another origin can post text/plain without a preflight request, but not application/json.
            got = f"'{clip(content_type.strip(), 100)}'" if content_type.strip() else "no Content-Type"
            raise InvalidRequest(f"Unsupported Media Type: Only 'application/json' is allowed; got {got}")
        if match := _CHARSET.search(parameters):
            charset = match[1].strip("\"'")
            if charset.lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
                raise UnsupportedMedia(
                    f"A body in the charset '{clip(charset, 100)}' is not supported: JSON is sent in UTF-8."
                )
        self._check_encoding()

    def _check_encoding(self) -> None:
        encoding = (self.header(b"content-encoding") or "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedMedia(
                f"A body with the Content-Encoding '{clip(encoding, 100)}' is not supported: send it uncompressed."
            )

    async def read_body(self, max_bytes: int | None = None, flag: str = "--max-body-bytes") -> bytes:
        """`max_bytes`: where it is not what bounds all bodies; `flag` is the server's setting of it."""
        self.scope["octavo.body_wanted"] = True
        limits = self.limits
        most = limits.max_bytes if max_bytes is None else max_bytes
        too_large = f"The request body is larger than {most} bytes (see {flag})."
        length = self.header(b"content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > most:
            raise RequestTooLarge(too_large)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(limits.seconds):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnected
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > most:
                        raise RequestTooLarge(too_large)
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise BodyTimeout("The request body did not arrive in time.") from None

    @asynccontextmanager
    async def cancelled_on_disconnect(self) -> AsyncIterator[None]:
        """The block is cancelled, and `ClientDisconnected` raised from it, when the client goes away.

        Enter it after the body is read: messages that arrive in the block are dropped.
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
            # Undo our own cancellation; let one from outside pass.
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

    async def start_stream(self, headers: list[Header]) -> None:
        """Begin a reply in pieces; `write` and `end` follow."""
        await self._start(200, headers)

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(self, status: int, headers: list[Header]) -> None:
        """Send the head, and note in the scope that the reply began; the scope holds the request's id for the head."""
        self.scope["octavo.status"] = status
        extra = self.extra_headers
        if not self.scope.get("octavo.body_wanted") and self.header(b"expect") is not None and _CLOSE not in headers:
            # The client may still send the body, so the connection cannot carry another request.
            extra = [*extra, _CLOSE]
        request_id = (b"x-request-id", self.scope["octavo.request_id"].encode())
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, *extra, request_id],
            }
        )


def decode_json(data: bytes, max_depth: int = 64) -> Any:
    """Strict JSON: no NaN or Infinity, no numbers beyond float64, valid UTF-8, bounded depth; a byte order mark is left
    out. Raises `InvalidRequest`, which says what is wrong, where, and in which field."""
    data = data.removeprefix(_BYTE_ORDER_MARK)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise json_fault(data) from None
    except RecursionError:
        raise InvalidRequest(_too_deep(max_depth)) from None
    # The number of brackets bounds the depth; nearly every request ends here.
    if data.count(b"[") + data.count(b"{") > max_depth and _is_deeper(value, max_depth):
        raise InvalidRequest(_too_deep(max_depth))
    return value


def _too_deep(limit: int) -> str:
    return f"The body is nested deeper than {limit} levels (see --max-json-depth)."


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
