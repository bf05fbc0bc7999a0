"""What a model writes, told apart: what it thinks, what it says, and the calls that it makes.

Law: the deltas of all pushes and of `finish`, put together, depend on the text alone, not on how it was cut. So the
reply that is not streamed, which pushes once, is the fold of the one that is.

Blanks that stand between a mark and text belong to the mark: they are no content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from octavo.text.formats.base import ReasoningFormat, Tool, ToolFormat
from octavo.text.formats.json_calls import JsonCalls
from octavo.text.formats.source import BLANKS, Malformed, Source, Steps, Unfinished, marks

_NO_TOOLS: Final = ToolFormat("", JsonCalls())  # nothing begins a call


@dataclass(slots=True)
class CallDelta:
    """News of one call. `name` comes once, with the first; `call_id` then too, where the model gave one itself."""

    index: int
    name: str | None = None
    call_id: str | None = None
    arguments: str = ""


@dataclass(slots=True)
class OutputDelta:
    """What some text meant."""

    reasoning: str = ""
    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.content or self.calls)


class _Text:
    """Pieces of one kind of text; blanks at its end are held until it is known what follows them."""

    __slots__ = ("_blanks", "_dropped", "_is_empty", "_is_parting", "_parts")

    def __init__(self) -> None:
        self._is_empty = True  # nothing was ever taken or is here to be
        self._parts: list[str] = []
        self._blanks: list[str] = []
        self._dropped = ""  # blanks before the last mark
        self._is_parting = False  # the blanks that are held follow a mark

    def add(self, text: str) -> None:
        stripped = text.rstrip(BLANKS)
        if stripped:
            self._parts += [*self._blanks, stripped]
            self._blanks = []
            self._dropped = ""
            self._is_empty = self._is_parting = False
        if len(stripped) < len(text):
            self._blanks.append(text[len(stripped) :])

    def drop_blanks(self) -> None:
        """A mark follows."""
        self._dropped = "".join(self._blanks) or self._dropped
        self._blanks = []

    def add_after_mark(self, blanks: str) -> None:
        """The blanks after a mark, or those before it, only part this text from what was there before."""
        self._is_parting = True
        if not self._is_empty:
            self.add(blanks or self._dropped)

    def release_blanks(self) -> None:
        """Nothing follows."""
        if not self._is_parting:
            self._parts += self._blanks
        self._blanks = []

    def take(self) -> str:
        text = "".join(self._parts)
        self._parts = []
        return text


class Sink:
    """Gathers what the stages find until it is taken. At most `max_calls` calls are kept, where that is set."""

    def __init__(self, max_calls: int | None = None) -> None:
        self.reasoning = _Text()
        self.content = _Text()
        self.num_calls = 0
        #: Characters of the text up to the end of the thinking, its mark included; None while it may go on.
        self.reasoning_end: int | None = None
        self._max_calls = max_calls
        self._calls: list[tuple[CallDelta, list[str]]] = []

    def begin(self, name: str, call_id: str | None) -> None:
        self.content.drop_blanks()
        self.num_calls += 1
        if not self._is_kept():
            return
        self._calls.append((CallDelta(self.num_calls - 1, name, call_id), []))

    def arguments(self, text: str) -> None:
        if not self._is_kept():
            return
        if not self._calls or self._calls[-1][0].index != self.num_calls - 1:
            self._calls.append((CallDelta(self.num_calls - 1), []))
        self._calls[-1][1].append(text)

    def _is_kept(self) -> bool:
        return self._max_calls is None or self.num_calls <= self._max_calls

    def take(self) -> OutputDelta:
        calls = []
        for delta, parts in self._calls:
            delta.arguments = "".join(parts)
            if delta.name is not None or delta.arguments:
                calls.append(delta)
        self._calls = []
        return OutputDelta(self.reasoning.take(), self.content.take(), calls)


@dataclass(frozen=True)
class OutputFormat:
    """How the output of one request is to be read.

    is_thinking: the prompt ends inside the model's thinking (True), or after it (False); None: the prompt does not
    tell. `whole_call`: all of the text is the arguments of a call of that function.
    """

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None
    known_tools: Sequence[Tool] = ()
    is_thinking: bool | None = None
    whole_call: str | None = None
    max_calls: int | None = None

    @property
    def marks(self) -> frozenset[str]:
        """Texts that must reach the parser though they may be special tokens."""
        rows = (self.tools, self.reasoning)
        return frozenset(mark.strip() for row in rows if row is not None for mark in row.marks)


class OutputParser:
    """The parser of one sample; used by one thread at a time. `finish` ends it."""

    def __init__(self, output_format: OutputFormat) -> None:
        self._source = Source()
        self._sink = Sink(output_format.max_calls)
        self._format = output_format
        self._steps = self._stages()
        self._is_over = False

    @property
    def num_calls(self) -> int:
        return self._sink.num_calls

    @property
    def reasoning_end(self) -> int | None:
        """Characters of the text up to the end of the thinking, its mark included; None while it may go on."""
        return self._sink.reasoning_end

    def push(self, text: str) -> OutputDelta:
        """What the text means, as far as that is certain."""
        self._source.feed(text)
        return self._advance()

    def finish(self, *, truncated: bool) -> OutputDelta:
        """The rest. `truncated`: the text was cut off by a limit, not ended by the model."""
        self._source.end(truncated=truncated)
        return self._advance()

    def _advance(self) -> OutputDelta:
        if not self._is_over:
            self._is_over = next(self._steps, True) is True
        return self._sink.take()

    # ------------------------------------------------------------ stages
    def _stages(self) -> Steps[None]:
        source, sink, rows = self._source, self._sink, self._format
        pipeline = next((row.pipeline for row in (rows.tools, rows.reasoning) if row and row.pipeline), None)
        if pipeline is not None:
            yield from pipeline(source, sink, rows.tools is not None, rows.reasoning is not None)
        else:
            if rows.reasoning is not None:
                yield from _reasoning(source, sink, rows.reasoning, rows.is_thinking)
            if rows.whole_call is not None:
                yield from _whole_call(source, sink, rows.whole_call)
            else:
                yield from _Answer(source, sink, rows).run()
        if not sink.num_calls:
            sink.content.release_blanks()


def _reasoning(source: Source, sink: Sink, row: ReasoningFormat, is_thinking: bool | None) -> Steps[None]:
    """What the model thinks before anything else."""
    begins = marks(*row.begins)
    source.record()
    yield from source.skip_blanks()
    begun = None if is_thinking is False else (yield from source.accept_any(begins))
    blanks = source.recorded()
    if begun is None and not is_thinking and not (row.is_implicit and is_thinking is None):
        sink.reasoning_end = 0
        if source.is_cut_within(*row.begins):
            source.take_rest()
        sink.content.add(blanks)
        return
    yield from source.skip_blanks()
    mark = yield from source.copy_until(marks(*row.ends), sink.reasoning.add, drops_cut_mark=True)
    if mark is None:
        sink.reasoning.release_blanks()
        return
    sink.reasoning.drop_blanks()
    source.take(len(mark))
    sink.reasoning_end = source.num_consumed
    yield from source.skip_blanks()


def _whole_call(source: Source, sink: Sink, name: str) -> Steps[None]:
    """The grammar of the request lets nothing but the arguments through."""
    yield from source.skip_blanks()
    if (yield from source.is_over()):
        return
    sink.begin(name, None)
    yield from source.copy_until(marks(), sink.arguments)


class _Answer:
    """Text, and calls in it if there are tools."""

    def __init__(self, source: Source, sink: Sink, rows: OutputFormat) -> None:
        self._source = source
        self._sink = sink
        self._row = row = rows.tools or _NO_TOOLS
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in rows.known_tools}
        self._begins = (*row.begins, *row.bare_begins)
        self._noise = (*row.noise, *(rows.reasoning.noise if rows.reasoning is not None else ()))

    def run(self) -> Steps[None]:
        source, content = self._source, self._sink.content
        if self._row.openers:
            source.record()
            yield from source.skip_blanks()
            char = yield from source.peek()
            source.rewind()
            if char and char in self._row.openers:
                yield from self._attempt("")
        wanted = marks(*self._begins, *self._noise)
        while (mark := (yield from source.copy_until(wanted, content.add, drops_cut_mark=True))) is not None:
            source.take(len(mark))
            if mark in self._begins:
                yield from self._attempt(mark)
            else:
                content.drop_blanks()
                yield from self._part_text()

    def _attempt(self, opened: str) -> Steps[None]:
        """Read calls after a mark. What comes to nothing is content (F24), the mark included."""
        source, sink, row = self._source, self._sink, self._row
        num_calls = sink.num_calls
        source.record()
        body = row.body if opened or row.bare_body is None else row.bare_body
        try:
            yield from body.parse(source, sink, self._tools, opened)
        except Malformed as error:
            if isinstance(error, Unfinished) and source.is_truncated:
                # The call is in the sink if its name is known; of one without a name nothing is shown.
                source.take_rest()
                sink.content.drop_blanks()
                return
            source.rewind()
            if sink.num_calls == num_calls:
                sink.content.add(opened)
                return
            # A call broke off, or one after it: what follows is content, so that nothing is lost.
            yield from self._part_text()
            yield from source.copy_until(
                marks(*self._begins, *self._noise, *row.ends), sink.content.add, drops_cut_mark=True
            )
        ends = marks(*row.ends)
        source.record()
        yield from source.skip_blanks()
        if (yield from source.accept_any(ends)) is None and not source.accept_cut_off(ends):
            source.rewind()
        yield from self._part_text()

    def _part_text(self) -> Steps[None]:
        """A mark was read: the blanks after it only part what follows from what was there before."""
        self._source.record()
        yield from self._source.skip_blanks()
        self._sink.content.add_after_mark(self._source.recorded())
