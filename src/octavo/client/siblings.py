"""The API processes of one server, as one of them sees the others.

What is true of the server and not of one process (does the engine sleep, which adapters are served, how many requests
run) is asked of all, or told to all, by name: each part `offer`s what it does when it is asked. A server of one
process takes the same way and finds itself.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

#: Takes and gives what msgpack can hold. May raise an `OctavoError`.
Offer = Callable[..., Awaitable[Any]]


class Siblings(Protocol):
    @property
    def index(self) -> int:
        """Which of the processes this is, from 0."""
        ...

    @property
    def count(self) -> int: ...

    def offer(self, name: str, function: Offer) -> None:
        """`function` answers to `name` in this process."""
        ...

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        """What each process answers, in their order, this one's among them. When all have answered, the first error is
        raised. Raises `ServerError` when a process is gone."""
        ...

    def alone(self, what: str) -> AbstractAsyncContextManager[None]:
        """In the block no other one of this name runs, in any process."""
        ...


def numbers_of(siblings: Siblings) -> Iterator[int]:
    """Numbers for requests, or for calls, that are those of no other process: the engine sees whose one is."""
    return itertools.count(siblings.index + siblings.count, siblings.count)


class Locks:
    """By name, each as long as somebody holds it or waits for it."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._held: dict[str, asyncio.Lock] = {}

    async def acquire(self, name: str) -> None:
        lock = self._locks.setdefault(name, asyncio.Lock())
        await lock.acquire()
        self._held[name] = lock

    async def release(self, name: str) -> None:
        self._held.pop(name).release()


class NoSiblings:
    """A server of one process. Implements `Siblings`."""

    index, count = 0, 1

    def __init__(self) -> None:
        self._offers: dict[str, Offer] = {}
        self._locks = Locks()

    def offer(self, name: str, function: Offer) -> None:
        self._offers[name] = function

    async def everywhere(self, name: str, *args: Any) -> list[Any]:
        return [await self._offers[name](*args)]

    @asynccontextmanager
    async def alone(self, what: str) -> AsyncIterator[None]:
        await self._locks.acquire(what)
        try:
            yield
        finally:
            await self._locks.release(what)


#: Numbers that each process tells: sequences in flight, tokens of prompts that wait, connections.
_SEQUENCES, _TOKENS, _CONNECTIONS, _WIDTH = range(4)
_CELL_BYTES: Final = 8


class Occupancy:
    """What each process holds, in memory that all of them see. Each writes its own numbers and reads those of the
    others, without a lock: two that look at the same moment may both take what there is one place for."""

    def __init__(self, fd: int, index: int, count: int) -> None:
        """`fd`: of `size(count)` bytes, zeros at first. It may be closed then."""
        self._cells = memoryview(mmap.mmap(fd, self.size(count))).cast("q")
        self._own = index * _WIDTH
        self._others = [i * _WIDTH for i in range(count) if i != index]

    @staticmethod
    def size(count: int) -> int:
        return count * _WIDTH * _CELL_BYTES

    def tell(self, num_sequences: int, num_queued_tokens: int) -> None:
        self._cells[self._own + _SEQUENCES] = num_sequences
        self._cells[self._own + _TOKENS] = num_queued_tokens

    def add_connections(self, number: int) -> None:
        self._cells[self._own + _CONNECTIONS] += number

    def others(self) -> tuple[int, int]:
        """Sequences and waiting tokens of the other processes."""
        cells = self._cells
        return sum(cells[i + _SEQUENCES] for i in self._others), sum(cells[i + _TOKENS] for i in self._others)

    @property
    def num_connections(self) -> int:
        return self._cells[self._own + _CONNECTIONS]

    @property
    def fewest_connections(self) -> int:
        """Of the other process with the fewest."""
        return min(self._cells[i + _CONNECTIONS] for i in self._others)
