"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequest
from octavo.generation import CompletionDelta, GenerationDelta, fold
from octavo.params import SamplingParams
from octavo.server.exchange import Exchange
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
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
from octavo.server.serving import Serving, UsageCount, renamed, reply_id, send_whole
from octavo.server.sse import TextEvent, event
from octavo.server.templates import check_template, note_unused_kwargs


class ChatHandler:
    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def __call__(self, exchange: Exchange) -> None:
        serving = self._serving
        serving.state.check_available()
        body, request = await serving.read(exchange, ChatRequest, CHAT_REFUSALS)
        check_prompt_options(body)
        model = serving.state.resolve_model(request.model)
        note_unused_kwargs(serving, exchange, request)
        params = self._params(request)
        async with exchange.cancelled_on_disconnect():
            params = await serving.constrained(params, body)
            ids = await render_chat(
                serving,
                request.messages,
                request.continue_final_message,
                request.add_generation_prompt,
                add_special_tokens=bool(request.add_special_tokens),
                documents=request.documents,
                chat_template=request.chat_template,
                chat_template_kwargs=request.chat_template_kwargs,
            )
            ids = serving.truncated(ids, params, request)
            params = serving.fit(params, len(ids), "messages")
            full_id = reply_id("chatcmpl", exchange, request)
            reply = _Reply(serving, request, params, full_id, model, ids)
            requests = [serving.generate_request(full_id, ids, params, request)]
            if request.stream and params.num_samples == params.n:
                await serving.stream(exchange, request, requests, params, reply)
                return
            async with aclosing(serving.generate(requests, params)) as deltas:
                whole = await reply.whole(deltas)
        await send_whole(exchange, whole, bool(request.stream))

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
    """Token ids of a conversation, of chat and of /tokenize alike (N16). `options` go to the renderer.

    Continuing the last message turns the generation prompt off.
    """
    own_template = options.get("chat_template")
    check_template(serving.state, own_template)
    plain = [message.for_template() for message in messages]
    options["continue_final_message"] = bool(continue_final_message)
    options["add_generation_prompt"] = not continue_final_message and add_generation_prompt is not False
    return await serving.tokenize(
        _num_chars(plain) + _num_chars(options) - len(own_template or ""),
        lambda: serving.state.renderer.render_chat(plain, **options),
        "messages",
        is_slow=own_template is not None,
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
        self, serving: Serving, request: ChatRequest, params: SamplingParams, reply_id: str, model: str, ids: list[int]
    ) -> None:
        self._serving = serving
        self._params = params
        self._id = reply_id
        self._model = model
        self._created = int(time.time())
        self._include_usage, self._continuous_usage = serving.usage_events(request)
        self._usage = UsageCount()
        self._is_begun = False
        self._first_ids: list[int] | UnsetType = ids if request.return_token_ids else UNSET
        self._text_events: dict[int, TextEvent] = {}
        self._names = serving.names(request)
        self._ids = ids  # of the prompt
        self._gives_ids = bool(request.return_token_ids)
        # T8: without a generation prompt the reply goes on in the last message's role.
        goes_on = request.continue_final_message or request.add_generation_prompt is False
        self._role = request.messages[-1].role if goes_on else serving.state.config.response_role
        last = request.messages[-1]
        self._echo = last.text() if request.echo and last.role == self._role else ""  # T9

    async def whole(self, deltas: AsyncIterator[tuple[int, GenerationDelta]]) -> ChatReply:
        final = await fold(delta async for _, delta in deltas)
        choices = [
            ChatChoice(
                choice.index,
                ReplyMessage(self._role, self._echo + choice.text),
                chat_logprobs(self._names, choice.token_ids, choice.logprobs, self._params.logprobs or 0),
                choice.finish_reason,
                choice.stop_reason,
                choice.token_ids if self._gives_ids else UNSET,
            )
            for choice in final.outputs
        ]
        usage = usage_of(final.num_prompt_tokens, final.num_cached_tokens, final.num_output_tokens)
        scores, wanted = None, self._params.prompt_logprobs
        if wanted is not None:
            scores = prompt_logprobs(self._serving.texts, self._ids, final.prompt_logprobs or [], wanted)
        return ChatReply(
            self._id,
            "chat.completion",
            self._created,
            self._model,
            choices,
            usage,
            self._serving.fingerprint,
            scores,
            self._ids if self._gives_ids else UNSET,
        )

    # ------------------------------------------------------------ EventWriter
    def events(self, place: int, delta: GenerationDelta) -> bytes:
        self._usage.add(place, delta)
        begin = b""
        if not self._is_begun:  # E52: one chunk a choice
            self._is_begun = True
            roles = (ChatChunkChoice(i, Delta(self._role, "")) for i in range(self._params.n))
            begin = b"".join(event(self._chunk(choice)) for choice in roles)
            self._first_ids = UNSET
            if self._echo:  # E53
                begin += b"".join(self._text_event(i)(self._echo) for i in range(self._params.n))
        return begin + b"".join([self._output(output) for output in delta.outputs])

    def last_events(self) -> bytes:
        return event(self._chunk(None)) if self._include_usage else b""

    def _output(self, output: CompletionDelta) -> bytes:
        """One choice's chunk; b"" when its text is held back and nothing else is to be said."""
        is_plain = output.logprobs is None and output.finish_reason is None
        if is_plain and not (self._gives_ids or self._continuous_usage):
            return self._text_event(output.index)(output.text) if output.text else b""
        logprobs = chat_logprobs(self._names, output.token_ids, output.logprobs, self._params.logprobs or 0)
        if logprobs is not None and not logprobs.content:
            logprobs = None
        is_last = output.finish_reason is not None
        if not (output.text or logprobs or is_last or (self._gives_ids and output.token_ids)):
            return b""
        choice = ChatChunkChoice(
            output.index,
            Delta(content=output.text) if output.text or not is_last else Delta(),
            logprobs,
            output.finish_reason,
            output.stop_reason if is_last else UNSET,
            output.token_ids if self._gives_ids else UNSET,
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
            self._first_ids,
        )
