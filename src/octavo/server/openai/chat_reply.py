"""The reply to a chat request, whole or as events."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from octavo.served.events import (
    CallArguments,
    CallBegan,
    Content,
    News,
    PromptReply,
    Reasoning,
    Reply,
    Said,
    SampleNews,
    Usage,
)
from octavo.served.model import Prepared
from octavo.served.models import Lease
from octavo.server.http.sse import TextEvent, event
from octavo.server.openai.logprobs import chat_logprobs, prompt_logprobs
from octavo.server.openai.protocol.chat import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatReply,
    ChatRequest,
    Delta,
    ReplyMessage,
)
from octavo.server.openai.protocol.common import RequestMetrics, metrics_of, progress_of, usage_of
from octavo.server.openai.protocol.common import Usage as UsageReply
from octavo.server.openai.protocol.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from octavo.server.openai.serving import Serving


class ChatEncoder:
    """One request's reply."""

    def __init__(self, serving: Serving, lease: Lease, request: ChatRequest, prepared: Prepared) -> None:
        [prompt] = prepared.prompts
        self._model = lease.model
        self._model_name = lease.name
        self._names = serving.names(lease.model, request.return_tokens_as_token_ids)
        self._fingerprint = lease.model.fingerprint
        self._params = prepared.params
        self._id = prepared.turn.request_id
        self._created = int(time.time())
        self._include_usage, self._continuous_usage = serving.usage_events(request)
        self._usage = Usage(prepared.num_media_tokens)
        self._gives_metrics = serving.gives_metrics(request)
        self._reading = prompt.reading
        self._ids = prompt.ids
        self._gives_ids = bool(request.return_token_ids)
        self._first_ids: list[int] | UnsetType = self._ids if self._gives_ids else UNSET
        self._is_begun = False
        self._text_events: dict[int, TextEvent] = {}
        # Without a generation prompt the reply goes on in the last message's role.
        goes_on = request.continue_final_message or request.add_generation_prompt is False
        self._role = request.messages[-1].role if goes_on else serving.state.config.response_role
        last = request.messages[-1]
        self._echo = last.text() if request.echo and last.role == self._role else ""

    # ------------------------------------------------------------ the whole
    def whole(self, replies: Sequence[PromptReply], usage: Usage) -> ChatReply:
        [reply] = replies
        scores, wanted = None, self._params.prompt_logprobs
        if wanted is not None:
            scores = prompt_logprobs(self._model.texts, self._ids, reply.prompt_logprobs or [], wanted)
        return ChatReply(
            self._id,
            "chat.completion",
            self._created,
            self._model_name,
            [self._choice(reply.samples[index]) for index in sorted(reply.samples)],
            usage_of(usage),
            self._fingerprint,
            scores,
            self._ids if self._gives_ids else UNSET,
            self._metrics_of(usage),
        )

    def _metrics_of(self, usage: Usage) -> RequestMetrics | UnsetType:
        return metrics_of(usage, self._params.n) if self._gives_metrics else UNSET

    def _choice(self, reply: Reply) -> ChatChoice:
        return ChatChoice(
            reply.index,
            self._message(reply),
            chat_logprobs(self._names, reply.token_ids, reply.logprobs, self._params.logprobs or 0),
            reply.finish_reason,
            reply.stop_reason,
            reply.token_ids if self._gives_ids else UNSET,
        )

    def _message(self, reply: Reply) -> ReplyMessage:
        calls = [ToolCall(call.call_id, "function", FunctionCall(call.name, call.arguments)) for call in reply.calls]
        content: str | None = self._echo + reply.content
        if not content and (calls or reply.reasoning) and not (self._reading is not None and self._reading.is_named):
            content = None
        message = ReplyMessage(self._role, content, tool_calls=calls or UNSET)
        if self._reading is not None and self._reading.has_reasoning:
            message.reasoning = message.reasoning_content = reply.reasoning or None
        return message

    # ------------------------------------------------------------ events
    def events(self, news: News) -> bytes:
        self._usage.add(news)
        begin = b""
        if not self._is_begun:  # one chunk of each choice has its role
            self._is_begun = True
            roles = (ChatChunkChoice(i, Delta(self._role, "")) for i in range(self._params.n))
            begin = b"".join(event(self._chunk(choice)) for choice in roles)
            self._first_ids = UNSET
            if self._echo:
                begin += b"".join(self._text_event(i)(self._echo) for i in range(self._params.n))
        if news.progress is not None:
            chunk = self._chunk(ChatChunkChoice(0, Delta(content="")))
            chunk.prompt_progress = progress_of(news)
            begin += event(chunk)
        return begin + b"".join([self._sample(sample) for sample in news.samples])

    def last_events(self) -> bytes:
        if not (self._include_usage or self._gives_metrics):
            return b""
        chunk = self._chunk(None)
        chunk.metrics = self._metrics_of(self._usage)
        if not self._include_usage:
            chunk.usage = UNSET
        return event(chunk)

    def _sample(self, sample: SampleNews) -> bytes:
        """One choice's chunks; b"" when its text is held back and there is nothing else to send."""
        is_plain = sample.logprobs is None and sample.finish_reason is None
        if is_plain and not (self._gives_ids or self._continuous_usage):
            return b"".join([self._said(sample.index, said) for said in sample.said])
        deltas = [_delta(said) for said in sample.said]
        last = deltas.pop() if deltas else None
        before = b"".join([event(self._chunk(ChatChunkChoice(sample.index, delta))) for delta in deltas])
        return before + self._last_chunk(sample, last)

    def _said(self, index: int, said: Said) -> bytes:
        if isinstance(said, Content):
            return self._text_event(index)(said.text)
        return event(self._chunk(ChatChunkChoice(index, _delta(said))))

    def _last_chunk(self, sample: SampleNews, delta: Delta | None) -> bytes:
        """The chunk that carries the log probabilities, ids and the end of a sample, if it has anything to say."""
        logprobs = chat_logprobs(self._names, sample.token_ids, sample.logprobs, self._params.logprobs or 0)
        if logprobs is not None and not logprobs.content:
            logprobs = None
        is_last = sample.finish_reason is not None
        if delta is None:
            if not (logprobs or is_last or (self._gives_ids and sample.token_ids)):
                return b""
            delta = Delta() if is_last or self._reading is not None else Delta(content="")
        choice = ChatChunkChoice(
            sample.index,
            delta,
            logprobs,
            sample.finish_reason,
            sample.stop_reason if is_last else UNSET,
            sample.token_ids if self._gives_ids else UNSET,
        )
        return event(self._chunk(choice))

    def _text_event(self, index: int) -> TextEvent:
        made = self._text_events.get(index)
        if made is None:
            made = TextEvent(lambda text: self._chunk(ChatChunkChoice(index, Delta(content=text))))
            self._text_events[index] = made
        return made

    def _chunk(self, choice: ChatChunkChoice | None) -> ChatChunk:
        """The chunk of one choice; without a choice, the chunk with the usage."""
        usage: UsageReply | UnsetType | None = None if self._include_usage else UNSET
        if self._continuous_usage or choice is None:
            usage = usage_of(self._usage)
        return ChatChunk(
            self._id,
            "chat.completion.chunk",
            self._created,
            self._model_name,
            self._fingerprint,
            [] if choice is None else [choice],
            usage,
            self._first_ids,
        )


def _delta(said: Said) -> Delta:
    """Each new call is announced in a delta of its own, before its arguments."""
    if isinstance(said, Content):
        return Delta(content=said.text)
    if isinstance(said, Reasoning):
        return Delta(reasoning=said.text, reasoning_content=said.text)
    if isinstance(said, CallBegan):
        head = FunctionCallDelta("", said.name)
        return Delta(tool_calls=[ToolCallDelta(said.call, head, said.call_id, "function")])
    assert isinstance(said, CallArguments)
    return Delta(tool_calls=[ToolCallDelta(said.call, FunctionCallDelta(said.text))])
