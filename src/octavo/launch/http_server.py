"""HTTP/1.1 and 1.0 over sockets: uvicorn with httptools, and what clients and proxies need beyond it.

- Idle connections live longer than those of proxies do, and end at once when the server drains.
- A client of HTTP/1.0 gets no chunks, and keeps its connection when it asks for that.
- A reply that ends a connection before the body has come still reaches its reader: the rest is read and dropped first.
  To close with bytes unread would reset the connection, and the error with it.
- What is not HTTP gets an error of the API's form, but never in the middle of another reply.
- An offer to upgrade (to HTTP/2, as Java's client makes) is not taken up, and nothing behind it is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Generator
from typing import Any

import httptools
import msgspec
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidRequest, RequestError
from octavo.server.http.errors import BodyTimeout, error_reply
from octavo.server.http.exchange import ASGIApp

#: Seconds that replies which are complete, or cut off, get to reach their readers.
FLUSH_SECONDS = 1
#: Seconds that a client gets to send the head of a request which it has begun.
HEAD_SECONDS = 60.0
#: Seconds for which the rest of a refused body is read and dropped.
LINGER_SECONDS = 5.0


class HTTPConfig(uvicorn.Config):
    """uvicorn's settings, and whether the server drains: every reply then ends its connection."""

    is_draining = False


def http_config(app: ASGIApp, config: ServerConfig) -> HTTPConfig:
    """The HTTP server's settings."""
    is_ours = config.configure_logging and config.log_config_file is None
    if is_ours and config.uvicorn_log_level == "info":
        # It tells of its own start and end, which launch does in fewer words.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    # A configuration of the log that speaks of uvicorn.access wants its lines.
    has_access_log = config.uvicorn_log_level in ("debug", "trace")
    if not is_ours:
        has_access_log = logging.getLogger("uvicorn.access").level != logging.NOTSET
    return HTTPConfig(
        app,
        loop="none",
        http=HTTPProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=has_access_log,
        proxy_headers=False,
        server_header=False,
        root_path=config.root_path,
        timeout_keep_alive=config.timeout_keep_alive,  # type: ignore[arg-type]  # only ever added to a time
        timeout_graceful_shutdown=FLUSH_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
        ssl_keyfile=config.ssl_keyfile,
        ssl_certfile=config.ssl_certfile,
        ssl_ca_certs=config.ssl_ca_certs,
        ssl_cert_reqs=config.ssl_cert_reqs,
        ssl_ciphers=config.ssl_ciphers or "TLSv1",  # uvicorn's own: all from TLS 1 on that OpenSSL has by default
    )


class HTTPServer(uvicorn.Server):
    """uvicorn without its signal handling, and with word of when it listens."""

    def __init__(self, config: HTTPConfig, on_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._http_config = config
        self._on_listening = on_listening

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.listen(sockets)
        self._on_listening()

    async def listen(self, sockets: list[socket.socket] | None) -> None:
        await super().startup(sockets)

    def start_draining(self) -> None:
        """End idle connections now, and every other one with its reply. New ones are still answered."""
        self._http_config.is_draining = True
        for connection in list(self.server_state.connections):
            if isinstance(connection, HTTPProtocol):
                connection.end_with_reply()


class HTTPProtocol(HttpToolsProtocol):
    """One connection. Its requests are answered in their order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False
        self._is_offer = False  # of an upgrade: the head that was just read comes again without it
        self._is_lingering = False
        self._timer: asyncio.TimerHandle | None = None  # for the head of a request, or for the rest of a body

    # ------------------------------------------------------------ the connection
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_idling()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_keepalive_if_required()
        self._set_timer(None)
        super().connection_lost(exc)

    def _start_idling(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _set_timer(self, seconds: float | None, function: Callable[[], None] | None = None) -> None:
        """One timer at a time; None ends it."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or function is None else self.loop.call_later(seconds, function)

    @property
    def _is_replying(self) -> bool:
        """A request is being answered. Its body may still be on its way."""
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def end_with_reply(self) -> None:
        """Close, at once if the connection is idle, else when all that came has been answered.

        A connection that has not asked anything yet is left to do so: its reply ends it.
        """
        if self._is_replying:
            self.cycle.keep_alive = False
        elif self.cycle is not None and not self._is_in_head:
            self.transport.close()

    # ------------------------------------------------------------ what comes in
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self.transport.is_closing():
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as exc:
                data = self._without_upgrade() + data[exc.args[0] :]
                self.parser = httptools.HttpRequestParser(self)  # the old one may count the connection as closed
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as it is made by uvicorn
            except httptools.HttpParserError as exc:
                self._refuse(exc, data)
                return
        if not (self._is_replying or self._is_in_head or self._is_lingering or self.transport.is_closing()):
            self._start_idling()  # empty lines are no request

    def _without_upgrade(self) -> bytes:
        """The head of a request that offers an upgrade, once more and without the offer.

        The parser takes what stands behind such a head for another protocol, body and all.
        """
        method = self.parser.get_method()
        if method == b"CONNECT" or self._is_lingering:
            return b""
        lines = [method + b" " + self.url + b" HTTP/1.1"]
        for name, value in self.headers:
            if name == b"connection":
                value = b", ".join(token for token in value.split(b",") if token.strip().lower() in _CONNECTION_TOKENS)
            if name != b"upgrade":
                lines.append(name + b": " + value)
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        if not self._is_lingering:
            self._set_timer(HEAD_SECONDS, self._on_head_timeout)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        if self._is_lingering:
            return
        self._set_timer(None)
        is_tunnel = self.parser.get_method() == b"CONNECT"
        if self.parser.should_upgrade() and not is_tunnel:
            self._is_offer = True  # `_without_upgrade` is asked next
            return
        self._take_target()
        super().on_headers_complete()
        cycle = self.cycle
        cycle.transport = _ReplyTransport(self)  # type: ignore[assignment]
        if self.parser.get_http_version() == "1.0":
            cycle.__class__ = _UnframedCycle  # the same state, another framing
            cycle.keep_alive = self.parser.should_keep_alive()
            cycle.waiting_for_100_continue = False  # HTTP/1.0 knows no interim replies
        if self.config.is_draining or is_tunnel:  # type: ignore[attr-defined]
            cycle.keep_alive = False

    def _take_target(self) -> None:
        """Absolute targets (`GET http://host/path`) name the host themselves; the asterisk of OPTIONS has no path."""
        target = self.url
        scheme, found, rest = target.partition(b"://")
        if found and scheme.lower() in (b"http", b"https"):
            authority, slash, path = rest.partition(b"/")
            self.url = slash + path if slash else b"/"
            self.headers[:] = [(name, authority if name == b"host" else value) for name, value in self.headers]
        elif not target.startswith(b"/"):
            self.url = b"/"
        elif target.startswith(b"//"):
            self.url = b"/" + target.lstrip(b"/")  # a URL would have its host here; proxies that join paths write it

    def on_body(self, body: bytes) -> None:
        if not self._is_lingering:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_lingering:
            self._close()
        elif self._is_offer:
            self._is_offer = False
        else:
            super().on_message_complete()

    # ------------------------------------------------------------ what is refused
    def _refuse(self, exc: httptools.HttpParserError, data: bytes) -> None:
        """`data` is not HTTP."""
        what = next((text for kind, text in _REASONS.items() if isinstance(exc, kind)), "")
        if data.startswith(b"\x16\x03"):
            what = ": it is TLS, and this port has none (use http://)"
        error = InvalidRequest(f"The request is not valid HTTP/1.1{what}.")
        self.logger.warning("%s", error.message)
        if self._is_lingering:
            self._close()
        elif self._is_replying and not self.cycle.more_body:
            # The request before was whole. Its reply must not be broken into: it ends the connection.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
        elif self._is_replying and (self.cycle.response_started or self.pipeline):
            self.transport.close()
        else:
            self._send_error(error)

    def _on_head_timeout(self) -> None:
        if self._is_in_head and not self._is_replying:
            self._send_error(BodyTimeout("The head of the request did not arrive in time."))

    def _send_error(self, error: RequestError) -> None:
        reply = error_reply(error)
        body = msgspec.json.encode(reply.body)
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[reply.status] + head + body)
        self._close()

    # ------------------------------------------------------------ ends
    def on_response_complete(self) -> None:
        if not self._is_lingering:
            super().on_response_complete()

    def close_after_body(self) -> None:
        """Close when the request has come to its end, or its client gives up, or after `LINGER_SECONDS`."""
        if not self.cycle.more_body or self.pipeline:
            self._close()
            return
        self._is_lingering = True
        self._set_timer(LINGER_SECONDS, self._close)
        if self.transport.can_write_eof():
            self.transport.write_eof()  # the client knows that nothing follows
        self.flow.resume_reading()

    def _close(self) -> None:
        self._set_timer(None)
        self.transport.close()


#: What a client may say of a connection that is not about an upgrade.
_CONNECTION_TOKENS = frozenset({b"close", b"keep-alive"})
#: What the parser's errors mean to whoever wrote the request.
_REASONS: dict[type[Exception], str] = {
    httptools.HttpParserInvalidMethodError: ": it does not begin with a method (they are in capitals)",
    httptools.HttpParserInvalidURLError: ": its target is not a path",
}


class _ReplyTransport:
    """The connection as a reply sees it: to close it waits for the end of the request."""

    def __init__(self, protocol: HTTPProtocol) -> None:
        self.write = protocol.transport.write  # bound, so that the tokens of a stream pass without a call more
        self.is_closing = protocol.transport.is_closing
        self.close = protocol.close_after_body


class _UnframedCycle(RequestResponseCycle):
    """A reply to HTTP/1.0: no chunks, so that the end of one without a length is the end of the connection."""

    is_unframed = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in message["headers"]}
            if b"content-length" not in names:
                self.is_unframed = True
                self.chunked_encoding = False
                self.keep_alive = False
            elif self.keep_alive and b"connection" not in names:
                message = {**message, "headers": [*message["headers"], (b"connection", b"keep-alive")]}
        elif self.is_unframed:
            self.expected_content_length = len(message.get("body", b""))  # what is written is what was promised
        await super().send(message)
