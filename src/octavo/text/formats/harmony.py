"""The output of gpt-oss: messages, each with a header that says whom it is for.

<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>

The channel analysis is reasoning; a message to a function is a call; everything else is content. The prompt ends within
the first header, after <|start|>assistant. Text without any mark is content.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from octavo.text.formats.base import Call, CallSink, GrammarBuilder, TextPieces, TextSink, Tool, skip_strays
from octavo.text.formats.source import Malformed, Source, Steps, Unfinished, marks

START: Final = "<|start|>"
CHANNEL: Final = "<|channel|>"
CONSTRAIN: Final = "<|constrain|>"
MESSAGE: Final = "<|message|>"
CALL: Final = "<|call|>"
ENDS: Final = ("<|end|>", CALL, "<|return|>")
ALL_MARKS: Final = (START, CHANNEL, CONSTRAIN, MESSAGE, *ENDS)
FUNCTIONS: Final = "functions."

_BODY_STOPS: Final = marks(START, CHANNEL, *ENDS)
_MARKS: Final = marks(START, CHANNEL, MESSAGE, *ENDS)
_TO: Final = "to="
_MAX_HEADER: Final = 1024
_RECIPIENT: Final = re.compile(r"to=([^\s<]+)")
_CHANNEL: Final = re.compile(re.escape(CHANNEL) + r"[ \t\r\n]*(\w+)")


@dataclass(frozen=True)
class HarmonyCalls:
    """One call: the recipient's name, the rest of the header, and the JSON object of the arguments."""

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        with Call(source, sink) as call:
            header = yield from source.text_until(marks(MESSAGE, *ENDS), _MAX_HEADER)
            yield from source.expect(MESSAGE)
            call.set_name(re.split(r"[\s<]", header, maxsplit=1)[0])
            yield from call.copy_json(source)
            call.close()

    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        head, tail = build.spelled(f" {CONSTRAIN}json{MESSAGE}"), build.mark(CALL)
        return build.one_of([f"{build.text(tool.name)} {head} {build.json(tool.parameters)} {tail}" for tool in tools])


def written(build: GrammarBuilder, tools: Sequence[Tool], content: str) -> str:
    """A whole output after <|start|>assistant: messages without a recipient, and at most one call, which ends it.

    Where `content` is not free, it is one message, and nothing comes before it or the call.
    """
    call = (
        f"{build.spelled(f'{CHANNEL}commentary to={FUNCTIONS}')} {HarmonyCalls().grammar(build, tools, parallel=False)}"
    )
    if content != "TEXT":
        return f"{build.spelled(f'{CHANNEL}final{MESSAGE}')} {content} | {call}"
    channel = build.one_of([build.text(name) for name in ("analysis", "commentary", "final")])
    message = f"{build.mark(CHANNEL)} {channel} {build.mark(MESSAGE)} TEXT"
    return f"({message} {build.spelled(f'<|end|>{START}assistant')})* ({message} | {call})"


class _Part:
    """One of the two texts of the reply. Messages of one kind are parted by a line break."""

    def __init__(self, pieces: TextPieces) -> None:
        self._pieces = pieces
        self._is_empty = True
        self._is_first = True  # piece of its message

    def message(self) -> Callable[[str], None]:
        self._is_first = True
        return self._add

    def more(self, text: str) -> None:
        """Text that begins no message."""
        self._is_first = False
        self._add(text)

    def _add(self, text: str) -> None:
        if self._is_first and not self._is_empty:
            self._pieces.add("\n")
        self._is_first = False
        self._is_empty = False
        self._pieces.add(text)


def read_harmony(source: Source, sink: TextSink, wants_tools: bool, wants_reasoning: bool) -> Steps[None]:
    """Without `wants_tools` calls are content, and without `wants_reasoning` what the model thinks is."""
    content = _Part(sink.content)
    reasoning = _Part(sink.reasoning) if wants_reasoning else content
    sink.reasoning_end = 0
    source.record()
    yield from source.skip_blanks()
    is_header = (yield from source.at(_TO)) or (yield from source.at(CHANNEL))
    blanks = source.recorded()
    if source.is_cut_within(_TO, CHANNEL):
        source.take_rest()
    if not is_header:
        sink.content.add(blanks)
    while is_header or (yield from _stray_text(source, content)):
        is_header = False
        header = yield from _header(source, content)
        if header is None:
            continue
        recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
        if recipient is not None and wants_tools:
            yield from _read_call(source, sink, recipient[1].removeprefix(FUNCTIONS), content)
        elif channel is not None and channel[1] == "analysis":
            yield from _read_analysis(source, sink, reasoning)
        else:
            yield from source.copy_until(_BODY_STOPS, content.message(), drops_cut_mark=True)
        if (yield from source.accept_any(marks(*ENDS))):
            yield from source.skip_blanks()
    sink.reasoning.release_blanks()


def _read_analysis(source: Source, sink: TextSink, reasoning: _Part) -> Steps[None]:
    sink.reasoning_end = None
    mark = yield from source.copy_until(_BODY_STOPS, reasoning.message(), drops_cut_mark=True)
    if mark is not None:
        sink.reasoning.drop_blanks()
        sink.reasoning_end = source.num_consumed + (len(mark) if mark in ENDS else 0)


def _stray_text(source: Source, content: _Part) -> Steps[bool]:
    """Text that is in no message; whether a message follows."""
    while True:
        mark = yield from source.copy_until(_MARKS, content.more, drops_cut_mark=True)
        if mark not in ENDS:
            return mark is not None
        source.take(len(mark))


def _header(source: Source, content: _Part) -> Steps[str | None]:
    """The header of a message up to its text; None, and content, if it is none."""
    source.record()
    yield from source.accept(START)
    try:
        header = yield from source.text_until(marks(START, MESSAGE, *ENDS), _MAX_HEADER)
        yield from source.expect(MESSAGE)
    except Malformed as error:
        source.rewind()
        if isinstance(error, Unfinished) and source.is_truncated:
            yield from source.copy_until(marks(), lambda text: None)
        elif (mark := (yield from source.accept_any(marks(START, CHANNEL, MESSAGE)))) is not None:
            content.more(mark)
        return None
    source.recorded()
    return header


def _read_call(source: Source, sink: TextSink, name: str, content: _Part) -> Steps[None]:
    """A message to a function. What is left of one that is no call is content."""
    try:
        with Call(source, sink) as call:
            call.set_name(name)
            yield from call.copy_json(source)
            call.close()
        yield from skip_strays(source)
    except Malformed:
        source.rewind()
    yield from source.copy_until(_BODY_STOPS, content.message(), drops_cut_mark=True)
