"""An HTTP server over a real socket, with the fakes behind it, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from octavo.base.config import ServerConfig
from octavo.launch.http_server import HTTPServer, http_config
from octavo.launch.listener import bind
from octavo.server.http.exchange import ASGIApp
from support.server_fakes import Server, make_server


@dataclass
class WireReply:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Wire:
    """One connection; `send` and `read` are its bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes | str) -> None:
        self.writer.write(data if isinstance(data, bytes) else data.encode())

    async def reply(self, has_body: bool = True) -> WireReply:
        """The next reply. One without length and chunks goes on until the connection ends."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        assert head[0].startswith("HTTP/1.1 "), head[0]
        pairs = [line.partition(": ")[::2] for line in head[1:-2]]
        assert len({name for name, _ in pairs}) == len(pairs), "no header twice"
        reply = WireReply(int(head[0].split()[1]), dict(pairs))
        if not has_body or reply.status == 100:
            return reply
        if "content-length" in reply.headers:
            reply.body = await self.reader.readexactly(int(reply.headers["content-length"]))
        elif reply.headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                reply.body += await self.reader.readexactly(size)
                await self.reader.readexactly(2)
            await self.reader.readexactly(2)
        else:
            reply.body = await self.reader.read()
        return reply

    async def is_closed(self) -> bool:
        """Wait for the end of the connection. Nothing more may come."""
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@dataclass
class Served:
    """A server that listens, on the loop of the test."""

    server: Server
    http: HTTPServer
    port: int

    async def connect(self) -> Wire:
        return Wire(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ask(self, data: bytes | str, has_body: bool = True) -> WireReply:
        """The one reply on a connection of its own."""
        wire = await self.connect()
        wire.send(data)
        reply = await wire.reply(has_body)
        wire.writer.close()
        return reply


@contextlib.asynccontextmanager
async def served(server: Server | None = None, app: ASGIApp | None = None, **config: object) -> AsyncIterator[Served]:
    """`config`: settings of the server. `app`: in place of the server's own."""
    server = server or make_server(**config)  # type: ignore[arg-type]
    settings = ServerConfig(host="127.0.0.1", port=0, **config)  # type: ignore[arg-type]
    listening = asyncio.Event()
    with bind(settings) as listener:
        http = HTTPServer(http_config(app or server.app, settings), listening.set)
        task = asyncio.create_task(http.serve(listener.sockets))
        await listening.wait()
        try:
            yield Served(server, http, listener.sockets[0].getsockname()[1])
        finally:
            http.should_exit = True
            await task
