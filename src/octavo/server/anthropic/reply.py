"""The reply to a Messages request, whole or as events."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from octavo.served import events
from octavo.served.events import CallArguments, CallBegan, Content, News, PromptReply, Reasoning, Reply, Said
from octavo.served.model import Prepared
from octavo.served.models import Lease
from octavo.server.anthropic.protocol import (
    BlockDelta,
    BlockReply,
    BlockStart,
    BlockStop,
    InputDelta,
    MessageDelta,
    MessageReply,
    MessagesRequest,
    MessageStart,
    MessageStop,
    MessagesUsage,
    OutputTokensDetails,
    SignatureDelta,
    StopDelta,
    TextDelta,
    TextReply,
    ThinkingDelta,
    ThinkingReply,
    ToolUseReply,
)
from octavo.server.call_arguments import value_of
from octavo.server.http.sse import TextEvent, event


class MessageEncoder:
    """One request's reply: its blocks one after the other, each of thinking, text, or a call."""

    def __init__(self, lease: Lease, request: MessagesRequest, prepared: Prepared) -> None:
        self._id = prepared.turn.request_id
        self._model_name = lease.name
        self._max_tokens = request.max_tokens
        self._shows_thinking = request.thinking is None or request.thinking.display != "omitted"
        self._usage = events.Usage()
        self._is_begun = False
        self._block: type[Said] | None = None  # what the open block is made of; None: no block is open
        self._index = -1  # the open block's, or the last one's
        self._num_calls = 0
        self._thinking = hashlib.blake2b(digest_size=32)  # of the open block
        self._text_event: TextEvent | None = None  # of the open block

    # ------------------------------------------------------------ the whole
    def whole(self, replies: Sequence[PromptReply], usage: events.Usage) -> MessageReply:
        reply = replies[0].samples[0]
        reason, sequence = self._stop(reply.finish_reason, reply.stop_reason, len(reply.calls), usage)
        return self._message(self._blocks(reply), reason, sequence, usage)

    def _blocks(self, reply: Reply) -> list[BlockReply]:
        blocks: list[BlockReply] = []
        if reply.reasoning:
            shown = reply.reasoning if self._shows_thinking else ""
            self._thinking.update(reply.reasoning.encode())
            blocks.append(ThinkingReply(shown, _signature(self._thinking)))
        if reply.content:
            blocks.append(TextReply(reply.content))
        blocks += [ToolUseReply(call.call_id, call.name, value_of(call.arguments)) for call in reply.calls]
        return blocks

    def _message(
        self, content: list[BlockReply], reason: str | None, sequence: str | None, usage: events.Usage
    ) -> MessageReply:
        return MessageReply(self._id, "assistant", self._model_name, content, reason, sequence, _usage(usage))

    def _stop(
        self, finish_reason: str | None, stop: int | str | None, num_calls: int, usage: events.Usage
    ) -> tuple[str, str | None]:
        """Why the reply ended, and the stop sequence that did it."""
        if finish_reason == "length":
            is_asked = usage.num_output_tokens >= self._max_tokens
            return ("max_tokens" if is_asked else "model_context_window_exceeded"), None
        if num_calls:
            return "tool_use", None
        return ("stop_sequence", stop) if isinstance(stop, str) else ("end_turn", None)

    # ------------------------------------------------------------ events
    def events(self, news: News) -> bytes:
        self._usage.add(news)
        out = b""
        if not self._is_begun:
            self._is_begun = True
            out = _event(MessageStart(self._message([], None, None, self._usage)))
        for sample in news.samples:
            out += b"".join([self._said(said) for said in sample.said])
            if sample.finish_reason is not None:
                out += self._ended()
                reason = self._stop(sample.finish_reason, sample.stop_reason, self._num_calls, self._usage)
                out += _event(MessageDelta(StopDelta(*reason), _usage(self._usage)))
        return out

    def last_events(self) -> bytes:
        return _event(MessageStop())

    def _said(self, said: Said) -> bytes:
        if isinstance(said, CallBegan):
            self._num_calls += 1
            return self._begun(CallArguments, ToolUseReply(said.call_id, said.name, {}))
        if isinstance(said, CallArguments):
            return _event(BlockDelta(self._index, InputDelta(said.text)))
        if isinstance(said, Content):
            begin = b"" if self._block is Content else self._begun(Content, TextReply(""))
            if self._text_event is None:
                self._text_event = TextEvent(self._text_delta, "content_block_delta")
            return begin + self._text_event(said.text)
        begin = b"" if self._block is Reasoning else self._begun(Reasoning, ThinkingReply("", ""))
        self._thinking.update(said.text.encode())
        return begin + (_event(BlockDelta(self._index, ThinkingDelta(said.text))) if self._shows_thinking else b"")

    def _text_delta(self, text: str) -> BlockDelta:
        return BlockDelta(self._index, TextDelta(text))

    def _begun(self, kind: type[Said], block: BlockReply) -> bytes:
        """The end of the block before, and the beginning of a new one."""
        before = self._ended()
        self._block, self._text_event = kind, None
        self._index += 1
        return before + _event(BlockStart(self._index, block))

    def _ended(self) -> bytes:
        """The end of the open block, if there is one."""
        if self._block is None:
            return b""
        signature = b""
        if self._block is Reasoning:
            signature = _event(BlockDelta(self._index, SignatureDelta(_signature(self._thinking))))
            self._thinking = hashlib.blake2b(digest_size=32)
        self._block = None
        return signature + _event(BlockStop(self._index))


def _event(body: msgspec.Struct) -> bytes:
    return event(body, str(body.__struct_config__.tag))


def _usage(counts: events.Usage) -> MessagesUsage:
    num_reasoning = counts.num_reasoning_tokens
    return MessagesUsage(
        counts.num_prompt_tokens - counts.num_cached_tokens,
        counts.num_cached_tokens,
        counts.num_output_tokens,
        output_tokens_details=UNSET if num_reasoning is None else OutputTokensDetails(num_reasoning),
    )


def _signature(thinking: Any) -> str:
    """Clients want one, and send it back. It is a digest: nothing here is encrypted, or verified."""
    return b64encode(thinking.digest()).decode()
