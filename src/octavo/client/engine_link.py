"""What goes over the client's connection beside requests: calls of the engine's methods, and the vocabulary."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from octavo.base.errors import ServerError
from octavo.text.tokenizers.vocabulary import vocabulary_of
from octavo.wire.messages import Call, CallResult, FromEngine, Vocabulary
from octavo.wire.transport import Connection

if TYPE_CHECKING:
    from octavo.text.tokenizers.tokenizer import Tokenizer


class Calls:
    """Calls of the engine's methods: each waits for the result that carries its number."""

    def __init__(self, connection: Connection[FromEngine], numbers: Iterator[int]) -> None:
        self._connection = connection
        self._numbers = numbers
        self._open: dict[int, asyncio.Future[Any]] = {}

    async def call(self, method: str, args: tuple[Any, ...]) -> Any:
        """Raises `ServerError` with the engine's reason, or `TransportError`."""
        call_id = next(self._numbers)
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


class VocabularySender:
    """The vocabulary, made for the first request with a grammar and sent before it, once."""

    def __init__(
        self,
        connection: Connection[FromEngine],
        tokenizer: Tokenizer,
        eos_token_ids: Sequence[int],
        *,
        is_sent: bool = False,
    ) -> None:
        """`is_sent`: by whoever started the engine."""
        self._connection = connection
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._made: Vocabulary | None = None
        self._is_sent = is_sent

    async def prepare(self) -> None:
        """Make it in a thread. Raises `InvalidRequest` for a tokenizer that does not know its bytes."""
        if self._made is None and not self._is_sent:
            made = await asyncio.to_thread(vocabulary_of, self._tokenizer, self._eos_token_ids)
            self._made = self._made or made

    def send_once(self) -> None:
        """Raises `TransportError`, and `InvalidRequest` as `prepare` does."""
        if not self._is_sent:
            self._made = self._made or vocabulary_of(self._tokenizer, self._eos_token_ids)
            self._connection.send(self._made)
            self._is_sent = True
