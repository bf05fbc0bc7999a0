"""Where an API process stands: alone under its supervisor, or one of several under a parent of octavo's."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from octavo.base.errors import ShuttingDown
from octavo.client.siblings import NoSiblings, Occupancy, Offer, Siblings, numbers_of
from octavo.launch.http_server import HTTPConfig, HTTPServer
from octavo.launch.listener import Listener
from octavo.launch.offers import answered, error_of
from octavo.launch.service_manager import tell_ready, tell_stopping
from octavo.launch.shared_http import SharedHTTPServer
from octavo.server.responses.shared_store import shared_store
from octavo.server.responses.store import ResponseStore
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


class Place(Protocol):
    """What `ServeLoop` needs to know of where it runs."""

    @property
    def siblings(self) -> Siblings: ...

    @property
    def occupancy(self) -> Occupancy | None:
        """None: this process is the only one."""
        ...

    @property
    def store(self) -> ResponseStore | None:
        """Of responses, if it is not the process's own."""
        ...

    @property
    def adapter_numbers(self) -> Iterator[int] | None: ...

    def http_server(self, config: HTTPConfig, on_listening: Callable[[], None]) -> HTTPServer: ...

    async def open(self, on_signal: Callable[[int], None]) -> None:
        """From here on `on_signal` is called with TERM and INT."""
        ...

    async def wait_turn(self, listener: Listener) -> None:
        """Returns when the server may listen."""
        ...

    def tell_listening(self, name: str, listener: Listener) -> None: ...

    def tell_leaving(self, status: str, seconds: float) -> None:
        """The process ends by itself within `seconds`."""
        ...


class OnlyPlace:
    """A server of one API process. Implements `Place`."""

    occupancy = store = adapter_numbers = None

    def __init__(self) -> None:
        self.siblings = NoSiblings()

    def http_server(self, config: HTTPConfig, on_listening: Callable[[], None]) -> HTTPServer:
        return HTTPServer(config, on_listening)

    async def open(self, on_signal: Callable[[int], None]) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, on_signal, signum)

    async def wait_turn(self, listener: Listener) -> None:
        listener.make_reusable()

    def tell_listening(self, name: str, listener: Listener) -> None:
        tell_address(name, listener)

    def tell_leaving(self, status: str, seconds: float) -> None:
        tell_stopping(status, seconds)


def tell_address(name: str, listener: Listener) -> None:
    """The server listens: to whoever waits for it."""
    # On stdout, for scripts that wait for the address; the reader may have closed it.
    with contextlib.suppress(OSError):
        sys.stdout.write(f"octavo serves {name} at {listener.url}\n")
        sys.stdout.flush()
    tell_ready(f"serving {name} at {listener.url}")


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
        self._connection.send(Ran(message.number, result, failure))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
