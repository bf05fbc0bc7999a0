"""One store of responses for several processes: it is in their parent, and they ask it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import msgspec

from octavo.server.responses.protocol.items import Item
from octavo.server.responses.store import KeptResponse, ResponseStore

#: What processes may ask of the store, and what it answers.
_METHODS: Final[dict[str, Any]] = {
    "insert": None,
    "finish": None,
    "response": KeptResponse | None,
    "delete_response": bool,
    "chain": list[KeptResponse] | str,
    "item": Item | None,
    "insert_conversation": None,
    "update_conversation": None,
    "conversation": dict[str, Any] | None,
    "delete_conversation": bool,
    "append": None,
    "items": list[Item],
    "delete_item": bool,
}

#: Items cross as JSON: schemas in them may have integers that msgpack has no place for. Which argument they are, and
#: what they are the result of.
_ITEMS_AT: Final = {"insert": 1, "finish": 3, "append": 1}
_GIVE_ITEMS: Final = frozenset({"item", "items"})

#: Asks the parent: (name, arguments that msgpack can hold) -> the answer.
Ask = Callable[..., Awaitable[Any]]


def store_offers(store: ResponseStore) -> dict[str, Ask]:
    """What the parent does when it is asked, by name."""

    def offer(method: Callable[..., Any], name: str) -> Ask:
        async def answered(*args: Any) -> Any:
            if name == "insert":
                args = (_typed(args[0], KeptResponse), *args[1:])
            args = _with_items(name, args, msgspec.json.decode)
            asked = method(*args)
            result = await (asked if inspect.isawaitable(asked) else asyncio.wrap_future(asked))
            return msgspec.json.encode(result) if name in _GIVE_ITEMS else result

        return answered

    return {f"store.{name}": offer(getattr(store, name), name) for name in _METHODS}


def shared_store(ask: Ask) -> ResponseStore:
    """The parent's store, as a process sees it. Raises what that raises."""
    return cast(ResponseStore, _SharedStore(ask))


class _SharedStore:
    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._unfinished: set[asyncio.Task[None]] = set()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        kind = _METHODS.get(name, AttributeError)
        if kind is AttributeError:
            raise AttributeError(name)

        async def asked(*args: Any) -> Any:
            result = await self._ask(f"store.{name}", *_with_items(name, args, msgspec.json.encode))
            return msgspec.json.decode(result) if name in _GIVE_ITEMS else _typed(result, kind)

        return asked

    def finish(self, response_id: str, status: str, body: bytes, output: Sequence[Item], events: bytes) -> Any:
        return self._send("finish", response_id, status, body, output, events)

    def append(self, conversation_id: str, items: Sequence[Item]) -> Any:
        return self._send("append", conversation_id, items)

    def _send(self, name: str, *args: Any) -> asyncio.Task[None]:
        """What is done whether or not somebody waits for it."""

        async def sent() -> None:
            await self._ask(f"store.{name}", *_with_items(name, args, msgspec.json.encode))

        task = asyncio.create_task(sent())
        self._unfinished.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._unfinished.discard(task)
        if not task.cancelled():
            task.exception()  # it is the store's own to log

    async def close(self) -> None:
        """Behind all that was asked before."""
        await asyncio.gather(*self._unfinished, return_exceptions=True)


def _with_items(name: str, args: tuple[Any, ...], function: Callable[[Any], Any]) -> tuple[Any, ...]:
    at = _ITEMS_AT.get(name)
    return args if at is None else (*args[:at], function(args[at]), *args[at + 1 :])


def _typed(value: Any, kind: Any) -> Any:
    return msgspec.convert(value, kind, builtin_types=(bytes,))
