"""What is kept of responses: read, followed, listed, cancelled, deleted."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from octavo.base.errors import InvalidRequest
from octavo.server.http.errors import validate_body
from octavo.server.http.exchange import Exchange
from octavo.server.http.sse import event
from octavo.server.openai.protocol.common import WireModel
from octavo.server.responses.events import send_events
from octavo.server.responses.history import not_kept
from octavo.server.responses.protocol.items import Item
from octavo.server.responses.protocol.reply import Deleted, ItemList
from octavo.server.responses.protocol.request import Include, ListQuery, RetrieveQuery
from octavo.server.responses.runs import Run, RunElsewhere
from octavo.server.responses.store import KeptResponse
from octavo.server.state import ServerState

M = TypeVar("M", bound=WireModel)
_WORDS = {"true": True, "false": False, "True": True, "False": False, "1": True, "0": False}


class _Included(WireModel):
    include: Include


class KeptHandlers:
    """Of the routes below /v1/responses/{response_id}."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def retrieve(self, exchange: Exchange) -> None:
        [response_id] = exchange.path_params
        query = query_of(exchange, RetrieveQuery)
        run = await self._state.runs.find(response_id, exchange.owner)
        if query.stream:
            start = 0 if query.starting_after is None else query.starting_after + 1
            if isinstance(run, Run):
                events = run.follow(start)
            elif run is not None:
                events = self._follow(exchange, run, start)
            else:
                kept = await self._kept(exchange)
                if not kept.is_background:
                    raise InvalidRequest(
                        "Only a response that was created with `background=true` can be streamed again.", "stream"
                    )
                events = _replayed(kept, start)
            async with exchange.cancelled_on_disconnect(), aclosing(events):
                await send_events(exchange, events, self._state.config.sse_keep_alive_interval)
            return
        if query.starting_after is not None:
            raise InvalidRequest("`starting_after` needs `stream=true`.", "starting_after")
        body = None if run is None else await run.body()
        await exchange.send_json(msgspec.Raw(body or (await self._kept(exchange)).body))

    async def _follow(self, exchange: Exchange, run: RunElsewhere, start: int) -> AsyncGenerator[list[bytes], None]:
        """The events of a response that another process makes."""
        while (events := await run.events(start)) is not None:
            start += len(events)
            yield events
        async for events in _replayed(await self._kept(exchange), start):  # it has come to its end meanwhile
            if events:
                yield events

    async def cancel(self, exchange: Exchange) -> None:
        """A response that is at its end stays as it is."""
        [response_id] = exchange.path_params
        run = await self._state.runs.find(response_id, exchange.owner)
        if run is not None and (body := await run.cancel()) is not None:
            await exchange.send_json(msgspec.Raw(body))
            return
        kept = await self._kept(exchange)
        if not kept.is_background:
            raise InvalidRequest("Only a response that was created with `background=true` can be cancelled.")
        await exchange.send_json(msgspec.Raw(kept.body))

    async def delete(self, exchange: Exchange) -> None:
        [response_id] = exchange.path_params
        run = await self._state.runs.find(response_id, exchange.owner)
        if run is not None:
            await run.cancel()
        if not await self._state.store.delete_response(response_id, exchange.owner):
            raise not_kept("response", response_id)
        await exchange.send_json(Deleted(response_id, "response"))

    async def input_items(self, exchange: Exchange) -> None:
        query = query_of(exchange, ListQuery)
        kept = await self._kept(exchange)
        await exchange.send_json(page_of(kept.input_items, query))

    async def _kept(self, exchange: Exchange) -> KeptResponse:
        response_id = exchange.path_params[0]
        kept = await self._state.store.response(response_id, exchange.owner)
        if kept is None:
            raise not_kept("response", response_id)
        return kept


async def _replayed(kept: KeptResponse, start: int) -> AsyncGenerator[list[bytes], None]:
    if kept.events is None:  # its server died: of its events nothing is left but what became of it
        last = {"type": "response.failed", "sequence_number": start, "response": msgspec.Raw(kept.body)}
        yield [event(last, "response.failed")]
        return
    events = kept.events.split(b"\n\n")[:-1]  # JSON has no newline
    yield [one + b"\n\n" for one in events[start:]]


def query_of(exchange: Exchange, model: type[M]) -> M:
    """The query as a `model`: words become what its fields are. Raises `InvalidRequest`."""
    given: dict[str, list[str]] = {}
    for name, texts in exchange.query().items():
        given.setdefault(name.removesuffix("[]"), []).extend(texts)  # another spelling of a list
    if "include" in given:
        validate_body(_Included, {"include": given["include"]})
    fields = {name: str(field.annotation) for name, field in model.model_fields.items() if name in given}
    return validate_body(model, {name: _value(given[name][-1], kind) for name, kind in fields.items()})


def _value(text: str, kind: str) -> Any:
    if "bool" in kind:
        return _WORDS.get(text, text)
    if "int" in kind and text.removeprefix("-").isascii() and text.removeprefix("-").isdecimal() and len(text) < 19:
        return int(text)
    return text


def page_of(items: list[Item], query: ListQuery) -> ItemList:
    """Raises `InvalidRequest`."""
    ordered = items if query.order == "asc" else items[::-1]
    if query.after is not None:
        places = [i for i, item in enumerate(ordered) if item["id"] == query.after]
        if not places:
            raise InvalidRequest(f"There is no item {query.after[:128]!r} in this list.", "after")
        ordered = ordered[places[0] + 1 :]
    return list_of(ordered[: query.limit], has_more=len(ordered) > query.limit)


def list_of(items: list[Item], *, has_more: bool) -> ItemList:
    ids = [item["id"] for item in items] or [""]
    return ItemList(items, ids[0], ids[-1], has_more)
