"""The items that a request goes on from: those of an earlier response or of a conversation, and items by reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from octavo.base.errors import InvalidRequest, RequestError
from octavo.server.openai.protocol.conversation import MAX_MESSAGES
from octavo.server.responses.protocol.items import Item, ReferenceInput
from octavo.server.responses.protocol.request import ConversationFields
from octavo.server.responses.store import ANSWERED, ResponseStore


class NotKept(RequestError):
    """There is no such response, conversation or item, or it is another key's."""

    status = 404
    type = "NotFoundError"
    code = "not_found"


async def history_of(request: ConversationFields, owner: str, store: ResponseStore) -> list[Item]:
    """Raises `InvalidRequest` or `NotKept`."""
    conversation_id, previous_id = request.conversation_id, request.previous_response_id
    if conversation_id is not None and previous_id is not None:
        raise InvalidRequest("`previous_response_id` cannot be combined with `conversation`.", "previous_response_id")
    if conversation_id is not None:
        if await store.conversation(conversation_id, owner) is None:
            raise not_kept("conversation", conversation_id, "conversation")
        items = await store.items(conversation_id)
    elif previous_id is not None:
        items = await _of_chain(previous_id, owner, store)
    else:
        return []
    if len(items) > MAX_MESSAGES:
        param = "conversation" if conversation_id is not None else "previous_response_id"
        raise InvalidRequest(f"There are more than {MAX_MESSAGES} items before this request.", param)
    return items


async def _of_chain(response_id: str, owner: str, store: ResponseStore) -> list[Item]:
    chain = await store.chain(response_id, owner, MAX_MESSAGES + 1)
    if isinstance(chain, str):
        if chain == response_id:
            raise not_kept("response", response_id, "previous_response_id")
        raise InvalidRequest(
            f"The response {chain}, from which {response_id[:64]!r} goes on, was deleted.", "previous_response_id"
        )
    items: list[Item] = []
    for kept in chain:
        if kept.status not in ANSWERED:
            raise InvalidRequest(
                f"The response {kept.id} is {kept.status}: there is nothing to go on from.", "previous_response_id"
            )
        if kept.conversation is not None:
            raise InvalidRequest(
                f"What led to the response {kept.id} is in the conversation {kept.conversation}: name that as "
                "`conversation` instead.",
                "previous_response_id",
            )
        items += kept.input_items + kept.output
    return items


async def kept_items(given: Sequence[Any], owner: str, store: ResponseStore, param: str) -> list[Item]:
    """Items of a request as they are kept; references are what they refer to. Raises `NotKept`."""
    items: list[Item] = []
    for i, item in enumerate(given):
        if isinstance(item, ReferenceInput):
            found = await store.item(item.id, owner)
            if found is None:
                raise not_kept("item", item.id, f"{param}.{i}.id")
            items.append(found)
        else:
            items.append(item.kept())
    return items


def not_kept(what: str, name: str, param: str | None = None) -> NotKept:
    return NotKept(f"There is no {what} with the id {name[:128]!r}.", param)
