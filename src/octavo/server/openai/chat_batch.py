"""POST /v1/chat/completions/batch: several conversations with the same settings, answered in one reply."""

from __future__ import annotations

from dataclasses import replace

from octavo.base.errors import InvalidRequest
from octavo.server.http.exchange import Exchange
from octavo.server.openai.chat import ChatHandler
from octavo.server.openai.chat_reply import ChatEncoder
from octavo.server.openai.conversation import conversation_of, note_unheard
from octavo.server.openai.limits import check_stream_fields
from octavo.server.openai.protocol.chat import BATCH_REFUSALS, ChatBatchRequest, ChatReply
from octavo.server.openai.protocol.conversation import check_prompt_options
from octavo.server.openai.serving import Serving, reply_id


class ChatBatchHandler:
    """All conversations are answered, or none is. Choice i answers conversation i."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._chat = ChatHandler(serving)

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        config = serving.state.config
        body, batch = await serving.read(exchange, ChatBatchRequest, BATCH_REFUSALS)
        check_prompt_options(body)
        if len(batch.messages) > config.max_prompts:
            raise InvalidRequest(f"At most {config.max_prompts} conversations are allowed in one request.", "messages")
        lease = serving.state.models.resolve(batch.model)
        requests = batch.requests()
        note_unheard(serving, lease.model, exchange, requests[0])
        check_stream_fields(requests[0])
        turn = self._chat.turn(body, requests[0], lease.model, reply_id("chatcmpl", exchange, requests[0]))
        turn = replace(
            turn,
            prompts=[conversation_of(request, request.messages, config) for request in requests],
            trace_headers=serving.trace_headers(exchange),
        )
        async with exchange.cancelled_on_disconnect():
            prepared = await lease.model.prepare(turn)
            replies, usage = await lease.model.whole(prepared)
            wholes: list[ChatReply] = []
            for request, prompt, reply in zip(requests, prepared.prompts, replies, strict=True):
                encoder = ChatEncoder(serving, lease, request, replace(prepared, prompts=[prompt]))
                wholes.append(encoder.whole([reply], usage))
            whole = wholes[0]
            whole.choices = [choice for each in wholes for choice in each.choices]
            for index, choice in enumerate(whole.choices):
                choice.index = index
            await exchange.send_json(whole)
