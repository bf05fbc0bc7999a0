"""The HTTP server of one of several processes that accept from the same sockets.

All wait for the same connections. The process that has the fewest takes one at once; one that has clearly more lets
the others go first for a moment, and takes what they left. Left to itself the first process to wake would take a
whole burst, since the event loop accepts until nothing waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import Final

from octavo.client.siblings import Occupancy
from octavo.launch.http_server import HTTPConfig, HTTPProtocol, HTTPServer

logger = logging.getLogger(__name__)

#: Seconds for which a process with more connections than another lets that go first.
STEP_BACK_SECONDS: Final = 0.002
#: A difference in connections that is not worth a wait: one for so many of its own.
SLACK_SHARE: Final = 4
#: Seconds until the next try when the process has no file descriptors left.
EXHAUSTED_SECONDS: Final = 1.0


class SharedHTTPServer(HTTPServer):
    """`HTTPServer` whose sockets are others' too."""

    def __init__(self, config: HTTPConfig, on_listening: Callable[[], None], occupancy: Occupancy) -> None:
        super().__init__(config, on_listening)
        self._occupancy = occupancy

    async def listen(self, sockets: list[socket.socket] | None) -> None:
        await super().listen([])
        loop = asyncio.get_running_loop()
        for sock in sockets or []:
            acceptor = Acceptor(loop, sock, self._make_protocol, self.config.ssl, self._occupancy)
            self.servers.append(acceptor)  # type: ignore[arg-type]  # it is closed like one
            acceptor.start()

    def _make_protocol(self) -> asyncio.Protocol:
        protocol = _CountedProtocol(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, _loop=None
        )
        protocol.occupancy = self._occupancy
        return protocol


class _CountedProtocol(HTTPProtocol):
    occupancy: Occupancy

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.occupancy.add_connections(1)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.occupancy.add_connections(-1)
        super().connection_lost(exc)


class Acceptor:
    """Of one socket, which belongs to the caller and listens already."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        sock: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        occupancy: Occupancy,
    ) -> None:
        self._loop, self._sock, self._make_protocol, self._tls = loop, sock, make_protocol, tls
        self._occupancy = occupancy
        self._pause: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._on_readable)

    def close(self) -> None:
        self._loop.remove_reader(self._sock)
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """There is nothing to wait for: connections are the server's."""

    def _on_readable(self) -> None:
        own = self._occupancy.num_connections
        if own > self._occupancy.fewest_connections + own // SLACK_SHARE:
            self._step_back(STEP_BACK_SECONDS)
        else:
            self._accept()

    def _step_back(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock, self._on_readable)
        self._accept()

    def _accept(self) -> None:
        """One, so that the others have their turn before the next."""
        try:
            connection, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client gone
        except OSError as exc:
            logger.error("a connection could not be accepted: %s", exc.strerror or exc)
            self._step_back(EXHAUSTED_SECONDS)
            return
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._connect(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection, ssl=self._tls)
        except OSError as exc:  # ssl.SSLError is one
            logger.debug("a connection failed as it began: %s", exc)
            connection.close()
