"""The reply to a chat request, whole or as events."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from msgspec import UNSET, UnsetType

from octavo.generation import Completion, CompletionDelta, GenerationDelta, fold
from octavo.params import SamplingParams
from octavo.server.chat_output import ChoiceOutput, OutputReading
from octavo.server.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatReply,
    ChatRequest,
    Delta,
    ReplyMessage,
)
from octavo.server.protocol.common import Usage, usage_of
from octavo.server.serving import Serving, UsageCount
from octavo.server.sse import TextEvent, event


class ChatReplyWriter:
    """One request's reply. `reading` None: all of the text is content."""

    def __init__(
        self,
        serving: Serving,
        request: ChatRequest,
        params: SamplingParams,
        reply_id: str,
        model: str,
        ids: list[int],
        reading: OutputReading | None = None,
    ) -> None:
        self._serving = serving
        self._params = params
        self._id = reply_id
        self._model = model
        self._created = int(time.time())
        self._include_usage, self._continuous_usage = serving.usage_events(request)
        self._usage = UsageCount()
        self._outputs = [ChoiceOutput(reading) for _ in range(params.n)] if reading is not None else None
        self._has_reasoning = reading is not None and reading.has_reasoning
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
        choices = [self._choice(choice) for choice in final.outputs]
        usage = usage_of(
            final.num_prompt_tokens, final.num_cached_tokens, final.num_output_tokens, self._num_reasoning_tokens()
        )
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

    def _choice(self, choice: Completion) -> ChatChoice:
        message, reason = ReplyMessage(self._role, self._echo + choice.text), choice.finish_reason
        if self._outputs is not None:
            output = self._outputs[choice.index]
            message = output.message(self._role, self._echo, output.push(choice.text, choice.token_ids, reason))
            reason = output.finish_reason(reason)
        return ChatChoice(
            choice.index,
            message,
            chat_logprobs(self._names, choice.token_ids, choice.logprobs, self._params.logprobs or 0),
            reason,
            choice.stop_reason,
            choice.token_ids if self._gives_ids else UNSET,
        )

    def _num_reasoning_tokens(self) -> int | None:
        """Of all choices so far; None where reasoning is not told apart."""
        if self._outputs is None or not self._has_reasoning:
            return None
        return sum(output.num_reasoning_tokens for output in self._outputs)

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
        """One choice's chunks; b"" when its text is held back and nothing else is to be said."""
        is_plain = output.logprobs is None and output.finish_reason is None
        is_plain = is_plain and not (self._gives_ids or self._continuous_usage)
        if self._outputs is None:
            if is_plain:
                return self._text_event(output.index)(output.text) if output.text else b""
            return self._last_chunk(output, Delta(content=output.text) if output.text else None)
        state = self._outputs[output.index]
        news = state.push(output.text, output.token_ids, output.finish_reason)
        if is_plain and news.content and not (news.reasoning or news.calls):
            return self._text_event(output.index)(news.content)
        deltas = state.deltas(news)
        last = None if is_plain or not deltas else deltas.pop()
        before = b"".join([event(self._chunk(ChatChunkChoice(output.index, delta))) for delta in deltas])
        if is_plain:
            return before
        output.finish_reason = state.finish_reason(output.finish_reason)
        return before + self._last_chunk(output, last)

    def _last_chunk(self, output: CompletionDelta, delta: Delta | None) -> bytes:
        """The chunk that carries the log probabilities, ids and the end of an output, if it has anything to say."""
        logprobs = chat_logprobs(self._names, output.token_ids, output.logprobs, self._params.logprobs or 0)
        if logprobs is not None and not logprobs.content:
            logprobs = None
        is_last = output.finish_reason is not None
        if delta is None:
            if not (logprobs or is_last or (self._gives_ids and output.token_ids)):
                return b""
            delta = Delta() if is_last or self._outputs is not None else Delta(content="")
        choice = ChatChunkChoice(
            output.index,
            delta,
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
            usage = usage_of(*self._usage.totals(), self._num_reasoning_tokens())
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
