"""POST /v1/chat/completions: from the body to a turn. `chat_reply` encodes the reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from octavo.base.errors import InvalidRequest
from octavo.served.model import ServedModel
from octavo.served.turn import ReplyWishes, Turn
from octavo.server.http.exchange import Exchange
from octavo.server.openai.chat_reply import ChatEncoder
from octavo.server.openai.conversation import conversation_of, note_unheard
from octavo.server.openai.limits import beam_params, check_stream_fields
from octavo.server.openai.protocol.chat import CHAT_REFUSALS, ChatRequest
from octavo.server.openai.protocol.conversation import check_prompt_options
from octavo.server.openai.serving import Serving, reply_id
from octavo.text.grammars.grammar import spec_of


class ChatHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, ChatRequest, CHAT_REFUSALS)
        check_prompt_options(body)
        lease = serving.state.models.resolve(request.model)
        note_unheard(serving, lease.model, exchange, request)
        check_stream_fields(request)
        turn = self.turn(body, request, lease.model, reply_id("chatcmpl", exchange, request))
        turn = replace(turn, trace_headers=serving.trace_headers(exchange))
        async with exchange.cancelled_on_disconnect():
            prepared = await lease.model.prepare(turn)
            encoder = ChatEncoder(serving, lease, request, prepared)
            await serving.send(
                exchange,
                lease.model,
                prepared,
                encoder,
                streams=bool(request.stream),
                interval=request.stream_interval,
            )

    def turn(self, body: Mapping[str, Any], request: ChatRequest, model: ServedModel, request_id: str) -> Turn:
        if request.top_logprobs and not request.logprobs:  # 0 is no request
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        sampling = request.sampling_values()
        sampling["logprobs"] = (request.top_logprobs or 0) if request.logprobs else None
        names = {"logprobs": "top_logprobs"}
        if request.max_completion_tokens is not None:
            sampling["max_tokens"] = request.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        return Turn(
            request_id=request_id,
            prompts=[conversation_of(request, request.messages, self._serving.state.config)],
            sampling=sampling,
            prompt_param="messages",
            beams=beam_params(request),
            constraint=spec_of(body, model.grammar_limits),
            wishes=_wishes(request),
            names=names,
            **request.turn_values(),
        )


def _wishes(request: ChatRequest) -> ReplyWishes:
    return ReplyWishes(
        functions=[tool.for_turn() for tool in request.tools or ()],
        choice=request.tool_choice,
        parallel_calls=request.parallel_tool_calls is not False,
        thinking_budget=request.thinking_token_budget,
        include_reasoning=request.include_reasoning is not False,
    )
