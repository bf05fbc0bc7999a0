"""Calls of the engine's methods over the client's connection."""

from __future__ import annotations

import asyncio
from typing import Any

from octavo.errors import ServerError
from octavo.messages import Call, CallResult, FromEngine
from octavo.transport import Connection


class Calls:
    """Calls of the engine's methods: each waits for the result that carries its number."""

    def __init__(self, connection: Connection[FromEngine]) -> None:
        self._connection = connection
        self._num_calls = 0
        self._open: dict[int, asyncio.Future[Any]] = {}

    async def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Raises `ServerError` with the engine's reason, or `TransportError`."""
        self._num_calls += 1
        call_id = self._num_calls
        future = self._open[call_id] = asyncio.get_running_loop().create_future()
        try:
            self._connection.send(Call(call_id, method, args))
            return await future
        finally:
            del self._open[call_id]

    def fail(self, error: ServerError) -> None:
        """End all open calls with an error like `error`."""
        for future in self._open.values():
            if not future.done():
                future.set_exception(type(error)(error.message))

    def on_result(self, message: CallResult) -> None:
        future = self._open.get(message.call_id)
        if future is None or future.done():
            return
        if message.error is not None:
            future.set_exception(ServerError(message.error))
        else:
            future.set_result(message.result)
