"""Where an API process stands: alone under its supervisor, or one of several under a parent of octavo's
(`shared_place`, which a server of one process does without)."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Protocol

from octavo.client.siblings import NoSiblings, Occupancy, Siblings
from octavo.launch.http_server import HTTPConfig, HTTPServer
from octavo.launch.listener import Listener
from octavo.launch.service_manager import tell_ready, tell_stopping
from octavo.server.responses.store import ResponseStore


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
