"""One choice of a chat reply: from a model's text to what the API calls content, reasoning and tool calls."""

from __future__ import annotations

import secrets
import string
import uuid
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType

from octavo.server.logprobs import TokenTexts
from octavo.server.protocol.chat import Delta, ReplyMessage
from octavo.server.protocol.tools import FunctionCall, FunctionCallDelta, ToolCall, ToolCallDelta
from octavo.text.output_parser import CallDelta, OutputDelta, OutputFormat, OutputParser

_ALPHANUMERIC = string.ascii_letters + string.digits
_NAMED_STYLE = {"mistral": lambda: "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))}  # C7


@dataclass(frozen=True)
class OutputReading:
    """What the choices of one request share."""

    format: OutputFormat
    texts: TokenTexts
    hidden_ids: frozenset[int]  # special tokens that are not in the text
    include_reasoning: bool = True
    is_named: bool = False
    is_forced: bool = False  # the output is held to calls

    @property
    def has_reasoning(self) -> bool:
        return self.format.reasoning is not None

    def call_id(self, call: CallDelta) -> str:
        """The id of a new call (F28): the model's own, or one in the style of its format."""
        if call.call_id is not None:
            return call.call_id
        style = self.format.tools.id_style if self.format.tools is not None else ""
        make = _NAMED_STYLE.get(style)
        return make() if make is not None else f"chatcmpl-tool-{uuid.uuid4().hex}"


@dataclass(slots=True)
class ChoiceOutput:
    """The state of one choice while its text arrives."""

    reading: OutputReading
    parser: OutputParser = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    _counted: tuple[int, int] = (0, 0)  # characters of thinking, and the tokens that they took

    def __post_init__(self) -> None:
        self.parser = OutputParser(self.reading.format)

    def push(self, text: str, token_ids: Sequence[int], finish_reason: str | None) -> OutputDelta:
        """What the new text means; all that is left when the choice is at its end."""
        if self.reading.has_reasoning:
            self.token_ids += token_ids
        delta = self.parser.push(text) if text else OutputDelta()
        if finish_reason is not None:
            truncated = finish_reason != "stop"
            rest = self.parser.finish(truncated=truncated)
            if truncated and self.reading.is_forced:
                rest.content = ""  # the beginning of a call, which is no text of its own (F20, F26)
            delta = OutputDelta(
                delta.reasoning + rest.reasoning, delta.content + rest.content, joined(delta.calls, rest.calls)
            )
        if not self.reading.include_reasoning:
            delta.reasoning = ""
        return delta

    def finish_reason(self, reason: str | None) -> str | None:
        """F20, F22: a reply that ends in calls says so, but for the one whose function the request named."""
        if reason == "stop" and self.parser.num_calls and not self.reading.is_named:
            return "tool_calls"
        return reason

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens up to the end of the thinking, its mark included."""
        end = self.parser.reasoning_end
        if end is None:
            return len(self.token_ids)
        if end != self._counted[0]:
            self._counted = (end, _tokens_within(self.token_ids, end, self.reading))
        return self._counted[1]

    # ------------------------------------------------------------ shapes of the API
    def deltas(self, delta: OutputDelta) -> list[Delta]:
        """The deltas of a stream: each new call is announced in one of its own (F25)."""
        result: list[Delta] = []
        if delta.content or delta.reasoning:
            thought: str | UnsetType = delta.reasoning or UNSET
            result.append(Delta(content=delta.content or UNSET, reasoning=thought, reasoning_content=thought))
        for call in delta.calls:
            if call.name is not None:
                head = FunctionCallDelta("", call.name)
                result.append(
                    Delta(tool_calls=[ToolCallDelta(call.index, head, self.reading.call_id(call), "function")])
                )
            if call.arguments:
                result.append(Delta(tool_calls=[ToolCallDelta(call.index, FunctionCallDelta(call.arguments))]))
        return result

    def message(self, role: str, echo: str, delta: OutputDelta) -> ReplyMessage:
        """The message of a whole reply, whose text was pushed in one piece."""
        calls = [
            ToolCall(self.reading.call_id(call), "function", FunctionCall(call.name or "", call.arguments))
            for call in delta.calls
        ]
        content: str | None = echo + delta.content
        if not content and not self.reading.is_named and (calls or delta.reasoning):
            content = None
        message = ReplyMessage(role, content, tool_calls=calls or UNSET)
        if self.reading.has_reasoning:
            message.reasoning = message.reasoning_content = delta.reasoning or None
        return message


def joined(first: list[CallDelta], second: list[CallDelta]) -> list[CallDelta]:
    """The news of calls in order, those of one call together."""
    if first and second and first[-1].index == second[0].index:
        last = first[-1]
        whole = CallDelta(last.index, last.name, last.call_id, last.arguments + second[0].arguments)
        return [*first[:-1], whole, *second[1:]]
    return first + second


def _tokens_within(ids: Sequence[int], num_chars: int, reading: OutputReading) -> int:
    """How many of the first tokens it takes to write that many characters."""
    if not num_chars:
        return 0
    decoder = getincrementaldecoder("utf-8")("replace")
    size = 0
    for count, token_id in enumerate(ids, 1):
        if token_id not in reading.hidden_ids:
            size += len(decoder.decode(bytes(reading.texts[token_id][1])))
        if size >= num_chars:
            return count
    return len(ids)
