"""/v1/conversations: lists of items that responses go on from and add to."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from octavo.server.http.exchange import Exchange
from octavo.server.openai.serving import Serving
from octavo.server.responses.history import kept_items, not_kept
from octavo.server.responses.kept import list_of, page_of, query_of
from octavo.server.responses.protocol.conversations import ConversationRequest, ConversationUpdate, ItemsRequest
from octavo.server.responses.protocol.items import Item, new_id
from octavo.server.responses.protocol.reply import ConversationReply, Deleted
from octavo.server.responses.protocol.request import ListQuery


class ConversationHandlers:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._state = serving.state

    async def create(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, ConversationRequest, {})
        items = await kept_items(request.items or (), exchange.owner, self._state.store, "items")
        made = ConversationReply(new_id("conv"), int(time.time()), request.metadata or {})
        await self._state.store.insert_conversation(made.id, exchange.owner, made)
        await self._append(made.id, items)
        await exchange.send_json(made)

    async def retrieve(self, exchange: Exchange) -> None:
        await exchange.send_json(await self._conversation(exchange))

    async def update(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, ConversationUpdate, {})
        body = await self._conversation(exchange) | {"metadata": request.metadata or {}}
        await self._state.store.update_conversation(body["id"], body)
        await exchange.send_json(body)

    async def delete(self, exchange: Exchange) -> None:
        conversation_id = exchange.path_params[0]
        if not await self._state.store.delete_conversation(conversation_id, exchange.owner):
            raise not_kept("conversation", conversation_id)
        await exchange.send_json(Deleted(conversation_id, "conversation.deleted"))

    async def list_items(self, exchange: Exchange) -> None:
        query = query_of(exchange, ListQuery)
        body = await self._conversation(exchange)
        await exchange.send_json(page_of(await self._state.store.items(body["id"]), query))

    async def add_items(self, exchange: Exchange) -> None:
        _, request = await self._serving.read(exchange, ItemsRequest, {})
        body = await self._conversation(exchange)
        items = await kept_items(request.items, exchange.owner, self._state.store, "items")
        await self._append(body["id"], items)
        await exchange.send_json(list_of(items, has_more=False))

    async def retrieve_item(self, exchange: Exchange) -> None:
        body = await self._conversation(exchange)
        item_id = exchange.path_params[1]
        for item in await self._state.store.items(body["id"]):
            if item["id"] == item_id:
                await exchange.send_json(item)
                return
        raise not_kept("item", item_id)

    async def delete_item(self, exchange: Exchange) -> None:
        """The reply is the conversation without it."""
        body = await self._conversation(exchange)
        item_id = exchange.path_params[1]
        if not await self._state.store.delete_item(body["id"], item_id):
            raise not_kept("item", item_id)
        await exchange.send_json(body)

    async def _append(self, conversation_id: str, items: list[Item]) -> None:
        await asyncio.shield(asyncio.wrap_future(self._state.store.append(conversation_id, items)))

    async def _conversation(self, exchange: Exchange) -> dict[str, Any]:
        conversation_id = exchange.path_params[0]
        body = await self._state.store.conversation(conversation_id, exchange.owner)
        if body is None:
            raise not_kept("conversation", conversation_id)
        return body
