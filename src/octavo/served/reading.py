"""From a model's text to what was meant by it: content, reasoning and function calls, one sample at a time."""

from __future__ import annotations

import secrets
import string
import uuid
from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, field

from octavo.client.generation import CompletionDelta
from octavo.served.events import CallArguments, CallBegan, Content, Reasoning, Said, SampleNews
from octavo.served.parts import TokenTexts
from octavo.text.formats.output_parser import CallDelta, OutputDelta, OutputFormat, OutputParser

_ALPHANUMERIC = string.ascii_letters + string.digits
_ID_STYLES = {"mistral": lambda: "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))}


@dataclass(frozen=True)
class OutputReading:
    """How the samples of one turn are read."""

    format: OutputFormat
    texts: TokenTexts
    hidden_ids: frozenset[int]  # special tokens that are not in the text
    include_reasoning: bool = True
    is_named: bool = False
    is_forced: bool = False  # the output is held to calls
    call_prefix: str = "chatcmpl-tool-"

    @property
    def has_reasoning(self) -> bool:
        return self.format.reasoning is not None

    def call_id(self, call: CallDelta) -> str:
        """The id of a new call: the model's own, or one in the style of its format."""
        if call.call_id is not None:
            return call.call_id
        style = self.format.tools.id_style if self.format.tools is not None else ""
        make = _ID_STYLES.get(style)
        return make() if make is not None else f"{self.call_prefix}{uuid.uuid4().hex}"


def plain(output: CompletionDelta) -> SampleNews:
    """News of a sample whose text is all content."""
    return SampleNews(
        output.index,
        [Content(output.text)] if output.text else [],
        output.token_ids,
        output.logprobs,
        output.finish_reason,
        output.stop_reason,
    )


@dataclass(slots=True)
class SampleReader:
    """One sample while its text arrives."""

    reading: OutputReading
    parser: OutputParser = field(init=False)
    token_ids: list[int] = field(default_factory=list)
    _counted: tuple[int, int] = (0, 0)  # characters of thinking, and the tokens that they took

    def __post_init__(self) -> None:
        self.parser = OutputParser(self.reading.format)

    def read(self, output: CompletionDelta) -> SampleNews:
        delta = self._push(output.text, output.token_ids, output.finish_reason)
        return SampleNews(
            output.index,
            self._said(delta),
            output.token_ids,
            output.logprobs,
            self._finish_reason(output.finish_reason),
            output.stop_reason,
        )

    def _push(self, text: str, token_ids: Sequence[int], finish_reason: str | None) -> OutputDelta:
        """What the new text means; all that is left when the sample is at its end."""
        if self.reading.has_reasoning:
            self.token_ids += token_ids
        delta = self.parser.push(text) if text else OutputDelta()
        if finish_reason is not None:
            truncated = finish_reason != "stop"
            rest = self.parser.finish(truncated=truncated)
            if truncated and self.reading.is_forced:
                rest.content = ""  # the beginning of a call, which is no text of its own
            delta = OutputDelta(
                delta.reasoning + rest.reasoning, delta.content + rest.content, joined(delta.calls, rest.calls)
            )
        if not self.reading.include_reasoning:
            delta.reasoning = ""
        return delta

    def _said(self, delta: OutputDelta) -> list[Said]:
        said: list[Said] = []
        if delta.reasoning:
            said.append(Reasoning(delta.reasoning))
        if delta.content:
            said.append(Content(delta.content))
        for call in delta.calls:
            if call.name is not None:
                said.append(CallBegan(call.index, self.reading.call_id(call), call.name))
            if call.arguments:
                said.append(CallArguments(call.index, call.arguments))
        return said

    def _finish_reason(self, reason: str | None) -> str | None:
        """A reply that ends in calls says so, but for the one whose function the caller named."""
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
