"""An API process that is one of several: it hears signals, its turn, and questions from the parent, and asks it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from octavo.base.errors import ShuttingDown
from octavo.client.siblings import Occupancy, Offer, numbers_of
from octavo.launch.http_server import HTTPConfig, HTTPServer
from octavo.launch.listener import Listener
from octavo.launch.offers import answered, error_of, reply
from octavo.launch.shared_http import SharedHTTPServer
from octavo.server.responses.shared_store import shared_store
from octavo.wire.api_messages import (
    Answer,
    Ask,
    Leaving,
    Listening,
    Ran,
    Ready,
    Run,
    Serve,
    Setup,
    Signalled,
    ToApiProcess,
)
from octavo.wire.transport import AsyncConnection, TransportError


async def _live() -> None:
    """The event loop turns."""


class SharedPlace:
    """One of several. Implements `Place`, and `Siblings` by questions to the parent."""

    def __init__(self, setup: Setup, control: socket.socket) -> None:
        self.index, self.count = setup.index, setup.count
        self.siblings = self
        self.occupancy = Occupancy(setup.occupancy_fd, setup.index, setup.count)
        os.close(setup.occupancy_fd)
        self.store = shared_store(self._ask_parent)
        self.adapter_numbers = numbers_of(self)
        self._control = control
        self._offers: dict[str, Offer] = {"live": _live}
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[Any]] = {}
        self._may_serve = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ Place
    def http_server(self, config: HTTPConfig, on_listening: Callable[[], None]) -> HTTPServer:
        return SharedHTTPServer(config, on_listening, self.occupancy)

    async def open(self, on_signal: Callable[[int], None]) -> None:
        self._connection: AsyncConnection[ToApiProcess] = await AsyncConnection.open(self._control, ToApiProcess)
        self._spawn(self._receive(on_signal))

    async def wait_turn(self, listener: Listener) -> None:
        self._connection.send(Ready())
        await self._may_serve.wait()

    def tell_listening(self, name: str, listener: Listener) -> None:
        self._connection.send(Listening())

    def tell_leaving(self, status: str, seconds: float) -> None:
        self._connection.send(Leaving(status, seconds))

    # ------------------------------------------------------------ Siblings
    def offer(self, name: str, function: Offer) -> None:
        self._offers[name] = function

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        results: list[Any] = await self._asked(name, args, everywhere=True)
        return results

    @asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        asked = self._asked("lock", (what,), everywhere=False)
        try:
            await asyncio.shield(asked)
        except asyncio.CancelledError:
            asked.add_done_callback(lambda _: self._unlock(what))  # nobody else would give back what is to be had
            raise
        try:
            yield
        finally:
            self._unlock(what)

    def _unlock(self, what: str) -> None:
        self._asked("unlock", (what,), everywhere=False)

    # ------------------------------------------------------------ the parent
    async def _ask_parent(self, name: str, *args: Any) -> Any:
        return await self._asked(name, args, everywhere=False)

    def _asked(self, name: str, args: tuple[Any, ...], *, everywhere: bool) -> asyncio.Future[Any]:
        """The answer to come, which may be waited for or not."""
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._connection.send(Ask(number, name, args, everywhere))
            self._open[number] = future
        except TransportError:  # the parent is gone, and this process about to be
            future.set_exception(ShuttingDown("The server is shutting down."))
        return future

    async def _receive(self, on_signal: Callable[[int], None]) -> None:
        with contextlib.suppress(TransportError):
            while (message := await self._connection.receive()) is not None:
                if isinstance(message, Answer):
                    self._on_answer(message)
                elif isinstance(message, Run):
                    self._spawn(self._run(message))
                elif isinstance(message, Signalled):
                    on_signal(message.signum)
                elif isinstance(message, Serve):
                    self._may_serve.set()
        os.write(2, b"octavo API process: its parent is gone\n")
        os._exit(1)  # nothing outlives the server

    def _on_answer(self, message: Answer) -> None:
        future = self._open.pop(message.number)
        if future.done():  # cancelled: nobody waits any more
            return
        if message.failure is None:
            future.set_result(message.result)
        else:
            future.set_exception(error_of(message.failure))

    async def _run(self, message: Run) -> None:
        result, failure = await answered(self._offers, message.name, message.args)
        with contextlib.suppress(TransportError):  # the parent is gone, and this process about to be
            reply(self._connection, Ran, message.number, result, failure)

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
