"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequest
from octavo.generation import CompletionDelta, GenerationDelta, fold
from octavo.params import GenerateRequest, SamplingParams
from octavo.server.exchange import Exchange
from octavo.server.logprobs import chat_logprobs
from octavo.server.protocol.chat import (
    CHAT_REFUSALS,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatReply,
    ChatRequest,
    Delta,
    Message,
    ReplyMessage,
    check_prompt_options,
)
from octavo.server.protocol.common import Usage, usage_of
from octavo.server.serving import Serving, UsageCount, new_id, renamed
from octavo.server.sse import TextEvent, event


class ChatHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, ChatRequest, CHAT_REFUSALS)
        check_prompt_options(body)
        model = serving.state.resolve_model(request.model)
        params = self._params(request)
        async with exchange.cancelled_on_disconnect():
            ids = await render_chat(
                serving,
                request.messages,
                request.continue_final_message,
                request.add_generation_prompt,
                add_special_tokens=bool(request.add_special_tokens),
                documents=request.documents,
                chat_template_kwargs=request.chat_template_kwargs,
            )
            params = serving.fit(params, len(ids), "messages")
            reply_id = new_id("chatcmpl")
            generate_request = serving.generate_request(reply_id, ids, params, request)
            reply = _Reply(serving, request, params, reply_id, model)
            if request.stream:
                await serving.stream(exchange, request, [generate_request], reply)
                return
            whole = await reply.whole(generate_request)
        await exchange.send_json(whole)

    def _params(self, request: ChatRequest) -> SamplingParams:
        if request.top_logprobs and not request.logprobs:  # D7: 0 is no request
            raise InvalidRequest("`top_logprobs` needs `logprobs` to be true.", "top_logprobs")
        changes: dict[str, Any] = {"logprobs": (request.top_logprobs or 0) if request.logprobs else None}
        names = {"logprobs": "top_logprobs"}
        if request.max_completion_tokens is not None:
            changes["max_tokens"] = request.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        try:
            return self._serving.checked_params(request, **changes)
        except InvalidRequest as exc:
            raise renamed(exc, names) from None


async def render_chat(
    serving: Serving,
    messages: list[Message],
    continue_final_message: bool | None,
    add_generation_prompt: bool | None,
    **options: Any,
) -> list[int]:
    """Token ids of a conversation. Continuing the last message turns the generation prompt off."""
    plain = [message.for_template() for message in messages]
    options["continue_final_message"] = bool(continue_final_message)
    options["add_generation_prompt"] = not continue_final_message and add_generation_prompt is not False
    return await serving.tokenize(
        _num_chars(plain) + _num_chars(options),
        lambda: serving.state.renderer.render_chat(plain, **options),
        "messages",
    )


def _num_chars(value: Any) -> int:
    """Characters of all strings in a JSON value, whose depth is bounded."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_chars, value.values()))
    return sum(map(_num_chars, value)) if isinstance(value, list) else 0


class _Reply:
    """One request's reply, whole or as events."""

    def __init__(
        self, serving: Serving, request: ChatRequest, params: SamplingParams, reply_id: str, model: str
    ) -> None:
        self._serving = serving
        self._params = params
        self._id = reply_id
        self._model = model
        self._created = int(time.time())
        self._include_usage, self._continuous_usage = serving.usage_events(request)
        self._usage = UsageCount()
        self._is_begun = False
        self._text_events: dict[int, TextEvent] = {}
        # T8: without a generation prompt the reply goes on in the last message's role.
        goes_on = request.continue_final_message or request.add_generation_prompt is False
        self._role = request.messages[-1].role if goes_on else serving.state.config.response_role

    async def whole(self, request: GenerateRequest) -> ChatReply:
        async with aclosing(self._serving.state.client.generate(request)) as stream:
            final = await fold(stream)
        choices = [
            ChatChoice(
                choice.index,
                ReplyMessage(self._role, choice.text),
                chat_logprobs(self._serving.texts, choice.token_ids, choice.logprobs, self._params.logprobs or 0),
                choice.finish_reason,
                choice.stop_reason,
            )
            for choice in final.outputs
        ]
        usage = usage_of(final.num_prompt_tokens, final.num_cached_tokens, final.num_output_tokens)
        return ChatReply(
            self._id, "chat.completion", self._created, self._model, choices, usage, self._serving.fingerprint
        )

    # ------------------------------------------------------------ EventWriter
    def events(self, place: int, delta: GenerationDelta) -> bytes:
        self._usage.add(place, delta)
        begin = b""
        if not self._is_begun:  # E52: one chunk a choice
            self._is_begun = True
            roles = (ChatChunkChoice(i, Delta(self._role, "")) for i in range(self._params.n))
            begin = b"".join(event(self._chunk(choice)) for choice in roles)
        return begin + b"".join([self._output(output) for output in delta.outputs])

    def last_events(self) -> bytes:
        return event(self._chunk(None)) if self._include_usage else b""

    def _output(self, output: CompletionDelta) -> bytes:
        """One choice's chunk; b"" when its text is held back and nothing else is to be said."""
        if output.logprobs is None and output.finish_reason is None and not self._continuous_usage:
            return self._text_event(output.index)(output.text) if output.text else b""
        logprobs = chat_logprobs(self._serving.texts, output.token_ids, output.logprobs, self._params.logprobs or 0)
        if logprobs is not None and not logprobs.content:
            logprobs = None
        is_last = output.finish_reason is not None
        if not (output.text or logprobs or is_last):
            return b""
        choice = ChatChunkChoice(
            output.index,
            Delta(content=output.text) if output.text or not is_last else Delta(),
            logprobs,
            output.finish_reason,
            output.stop_reason if is_last else UNSET,
        )
        return event(self._chunk(choice))

    def _text_event(self, index: int) -> TextEvent:
        made = self._text_events.get(index)
        if made is None:
            made = TextEvent(lambda text: self._chunk(ChatChunkChoice(index, Delta(content=text))))
            self._text_events[index] = made
        return made

    def _chunk(self, choice: ChatChunkChoice | None) -> ChatChunk:
        """The chunk of one choice, or with none the one that tells the usage."""
        usage: Usage | UnsetType | None = None if self._include_usage else UNSET
        if self._continuous_usage or choice is None:
            usage = usage_of(*self._usage.totals())
        return ChatChunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model,
            self._serving.fingerprint,
            [] if choice is None else [choice],
            usage,
        )
