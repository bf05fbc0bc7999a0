"""The routes of the Responses and Conversations APIs."""

from __future__ import annotations

from octavo.server.http.routing import Route
from octavo.server.openai.protocol.tokenize import InputTokens
from octavo.server.openai.serving import Serving
from octavo.server.responses.conversations import ConversationHandlers
from octavo.server.responses.create import CreateHandler, InputTokensHandler
from octavo.server.responses.kept import KeptHandlers
from octavo.server.responses.protocol.conversations import ConversationRequest, ConversationUpdate, ItemsRequest
from octavo.server.responses.protocol.reply import ConversationReply, Deleted, Event, ItemList, Response
from octavo.server.responses.protocol.request import InputTokensRequest, ListQuery, ResponsesRequest, RetrieveQuery

_RESPONSE = "/v1/responses/{response_id}"
_CONVERSATION = "/v1/conversations/{conversation_id}"
_ITEM = _CONVERSATION + "/items/{item_id}"


def responses_routes(serving: Serving) -> list[Route]:
    kept, talks = KeptHandlers(serving.state), ConversationHandlers(serving)
    talk, talk_reply = ConversationRequest, ConversationReply
    create, count = CreateHandler(serving), InputTokensHandler(serving)
    return [
        Route("POST", "/v1/responses", create, "Make a response", ResponsesRequest, Response, Event),
        Route(
            "POST", "/v1/responses/input_tokens", count, "Count the tokens of an input", InputTokensRequest, InputTokens
        ),
        Route("GET", _RESPONSE, kept.retrieve, "A response", reply=Response, event=Event, query=RetrieveQuery),
        Route("DELETE", _RESPONSE, kept.delete, "Delete a response", reply=Deleted),
        Route("POST", _RESPONSE + "/cancel", kept.cancel, "End a response in the background", reply=Response),
        Route(
            "GET", _RESPONSE + "/input_items", kept.input_items, "The items that a response was asked with",
            reply=ItemList, query=ListQuery,
        ),
        Route("POST", "/v1/conversations", talks.create, "Begin a conversation", talk, talk_reply),
        Route("GET", _CONVERSATION, talks.retrieve, "A conversation", reply=ConversationReply),
        Route(
            "POST", _CONVERSATION, talks.update, "Change a conversation's metadata", ConversationUpdate,
            ConversationReply,
        ),
        Route("DELETE", _CONVERSATION, talks.delete, "Delete a conversation", reply=Deleted),
        Route(
            "GET", _CONVERSATION + "/items", talks.list_items, "The items of a conversation", reply=ItemList,
            query=ListQuery,
        ),
        Route("POST", _CONVERSATION + "/items", talks.add_items, "Add items to a conversation", ItemsRequest, ItemList),
        Route("GET", _ITEM, talks.retrieve_item, "An item of a conversation"),
        Route("DELETE", _ITEM, talks.delete_item, "Delete an item of a conversation", reply=ConversationReply),
    ]  # fmt: skip
