"""The routes of Anthropic's API."""

from __future__ import annotations

from dataclasses import replace

from octavo.server.anthropic.errors import MessagesError
from octavo.server.anthropic.messages import CountHandler, MessagesHandler
from octavo.server.anthropic.protocol import CountReply, CountRequest, MessageReply, MessagesRequest, StreamEvent
from octavo.server.http.routing import Route
from octavo.server.openai.serving import Serving


def anthropic_routes(serving: Serving) -> list[Route]:
    answer, count = MessagesHandler(serving), CountHandler(serving)
    about = "Answer a conversation, as Anthropic's API does"
    table = [
        Route("POST", "/v1/messages", answer, about, MessagesRequest, MessageReply, StreamEvent),
        Route("POST", "/v1/messages/count_tokens", count, "Tokens of a conversation", CountRequest, CountReply),
    ]
    return [replace(route, error=MessagesError) for route in table]
