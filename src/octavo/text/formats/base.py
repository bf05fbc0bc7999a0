"""What an output format is: a row of marks, and a body that knows how a call is spelled.

From a row come the parser of what a model writes (`Body.parse`) and the grammar that makes it write so
(`Body.grammar`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from octavo.text.formats.json_copy import JsonCopy
from octavo.text.formats.source import Malformed, Marks, Source, Steps, Unfinished, marks

#: Characters of a function's name.
MAX_NAME: Final = 256


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. `parameters`: the schema of its arguments."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})


class CallSink(Protocol):
    """Where the parts of calls go."""

    def begin(self, name: str, call_id: str | None) -> None:
        """A call of that function begins; its arguments follow."""
        ...

    def arguments(self, text: str) -> None:
        """The next piece of the JSON text of the call's arguments."""
        ...


class Call:
    """One call that is being read: `with Call(...) as call`.

    It is announced when its name is known and the first of its arguments is passed on; from then on it is a call,
    whatever follows. Until then the source records what is read, which is content if it comes to nothing.

    A text that is broken after the call was announced, or just ends, leaves the call with what was passed on, and what
    makes JSON of it. A text that was cut off leaves what was written so far, of each call whose name is known.
    """

    def __init__(self, source: Source, sink: CallSink, names: frozenset[str] | None = None) -> None:
        """`names`: the only ones that a call may have; None: any."""
        self._source = source
        self._sink = sink
        self._names = names
        self._early: list[str] = []  # arguments that came before the name
        self.name: str | None = None
        self.call_id: str | None = None
        self.is_announced = False
        #: What makes JSON of the arguments that were passed on; "": nothing was, or nothing is due.
        self.completion: Callable[[], str] = _nothing
        #: What of the arguments was written and not passed on, because it may come to nothing.
        self.held: Callable[[], str] = _nothing
        if not source.is_recording:
            source.record()

    def __enter__(self) -> Call:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Malformed):
            return
        is_unfinished = isinstance(error, Unfinished)
        if is_unfinished and self._source.is_truncated:
            if self.name is not None:
                self.arguments(self.held())
                self._source.take_rest()
            return
        completion = self.completion()
        if not self.is_announced and (self.name is None or not is_unfinished or not completion):
            return
        self._source.rewind()
        if is_unfinished:
            self._source.take_rest()
        self.arguments(completion)

    @property
    def has_arguments(self) -> bool:
        """Arguments have begun, before the name or after it."""
        return self.is_announced or bool(self._early)

    @property
    def is_doubtful(self) -> bool:
        """Nothing has shown yet that it is a call."""
        return self._names is not None and self.name is None

    def read_name(self, source: Source) -> Steps[None]:
        """The name is a JSON string that begins here. Raises `Malformed` for one that no call can have."""
        self.set_name((yield from read_string(source, beginnings=self._names)))

    def set_name(self, name: str) -> None:
        """Raises `Malformed` for a name that no call can have."""
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise Malformed
        if self._names is not None and name not in self._names:
            raise Malformed
        if self.name is None:
            self.name = name
            if self._early:
                self.arguments("".join(self._early))

    def arguments(self, text: str) -> None:
        """The next piece of the arguments, of which nothing is taken back: what was read so far is used."""
        if self.name is None:
            self._early.append(text)
            return
        self._source.recorded()
        if not self.is_announced:
            self.is_announced = True
            self._sink.begin(self.name, self.call_id)
        self._sink.arguments(text)

    def copy_json(self, source: Source) -> Steps[None]:
        """The arguments are a JSON object that begins here."""
        yield from source.skip_blanks()
        char = yield from source.peek()
        if char != "{":
            raise Malformed if char else Unfinished
        copy = JsonCopy(self.arguments)
        self.completion, self.held = copy.completion, copy.held
        yield from copy.run(source)
        self.completion = self.held = _nothing

    def close(self) -> None:
        """The call is at its end. Raises `Malformed` when it has no name."""
        if self.name is None:
            raise Malformed
        if not self.is_announced:
            self.arguments("{}")


def _nothing() -> str:
    return ""


class GrammarBuilder(Protocol):
    """`tool_grammar.Builder`: pieces of Lark text."""

    def mark(self, text: str) -> str:
        """A mark: the special token of that text where the vocabulary has one, else the text."""
        ...

    def text(self, text: str) -> str:
        """A literal text; "" for none."""
        ...

    def spelled(self, text: str) -> str:
        """A text in which marks stand that may be special tokens."""
        ...

    def json(self, schema: Any) -> str:
        """A JSON value of the schema."""
        ...

    def regex(self, pattern: str) -> str: ...

    def one_of(self, alternatives: Sequence[str]) -> str: ...


class Body(Protocol):
    """How calls are spelled between the marks of a row."""

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        """Read what follows the mark `opened`, which is "" where a call begins without one.

        The source records from there on. Raises `Malformed` where it is no call any more; what was recorded and is
        no part of a call is read again as text. Everything but `Call` is stateless.
        """
        ...

    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        """One or more calls of `tools`, with all their marks but the first of the row's `begins`."""
        ...


class TextSink(CallSink, Protocol):
    """`output_parser.Sink`: text goes to `reasoning.add` and `content.add`.

    reasoning_end: characters of the whole text up to the end of the thinking; None while it goes on.
    """

    reasoning_end: int | None

    @property
    def reasoning(self) -> TextPieces: ...

    @property
    def content(self) -> TextPieces: ...


class TextPieces(Protocol):
    def add(self, text: str) -> None: ...

    def drop_blanks(self) -> None: ...

    def release_blanks(self) -> None: ...


#: (source, sink, are tools wanted, is reasoning wanted)
Pipeline = Callable[[Source, TextSink, bool, bool], Steps[None]]


@dataclass(frozen=True)
class ToolFormat:
    """One row."""

    name: str
    body: Body
    begins: tuple[str, ...] = ()  # any of them opens one call or several; the grammar writes the first
    ends: tuple[str, ...] = ()  # what may follow the calls, and is no text
    noise: tuple[str, ...] = ()  # marks around all calls, which are no text either
    #: Characters with which calls without a mark begin, at the start of the text only, and how such calls are spelled
    #: where that is not how the format has them.
    openers: str = ""
    bare_body: Body | None = None
    id_style: str = "call"  # how ids look: "call" or "mistral"
    extra_marks: tuple[str, ...] = ()  # inside calls
    bare_begins: tuple[str, ...] = ()  # with which a call itself begins whose mark is missing; no grammar knows them
    repeats: bool = False  # each of several calls has marks of its own, parted by `between`
    between: str = ""
    pipeline: Pipeline | None = None  # reads the whole output, in place of the usual stages
    #: (build, tools, content) -> the grammar of a whole output with calls in it, where text is not free between the
    #: marks. `content`: the rule that what is said to the user fits.
    among_text: Callable[[GrammarBuilder, Sequence[Tool], str], str] | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """All texts that may be special tokens of the vocabulary."""
        return (*self.begins, *self.bare_begins, *self.ends, *self.noise, *self.extra_marks)


@dataclass(frozen=True)
class ReasoningFormat:
    """How a model marks what it thinks before it answers."""

    name: str
    begin: str
    end: str
    pipeline: Pipeline | None = None
    is_implicit: bool = False  # the thinking may begin without its mark, where the prompt does not say that it is over
    #: Further ways to begin and to end it.
    other_begins: tuple[str, ...] = ()
    other_ends: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()  # marks around the answer, which are no text
    answer: str = ""  # what the model writes before its answer, where that is no call
    extra_marks: tuple[str, ...] = ()  # that a pipeline reads

    @property
    def begins(self) -> tuple[str, ...]:
        return (self.begin, *self.other_begins)

    @property
    def ends(self) -> tuple[str, ...]:
        return (self.end, *self.other_ends)

    @property
    def marks(self) -> tuple[str, ...]:
        return (*self.begins, *self.ends, *self.noise, *self.extra_marks)


def read_name(source: Source, stops: Marks, limit: int) -> Steps[str]:
    """A name before the first of `stops`. Raises `Malformed`, and `Unfinished` only where the text may begin a name."""
    try:
        return (yield from source.text_until(stops, limit)).strip()
    except Unfinished:
        begun = yield from source.peek(limit + stops.max_size)
        begun = begun[: len(begun) - stops.num_held(begun, 0)]
        if any(map(str.isspace, begun.strip())):
            raise Malformed from None
        raise


def read_string(source: Source, limit: int = 4096, beginnings: Collection[str] | None = None) -> Steps[str]:
    """A JSON string, decoded. Raises `Malformed`, at its end also for one of more than `limit` characters.

    Raises `Unfinished` where the text ends within it, and may still begin one of `beginnings`, if they are given.
    """
    parts: list[str] = []
    char = yield from source.peek()
    if not char or char not in "\"'":
        raise Malformed if char else Unfinished
    size = 0

    def keep(text: str) -> None:
        nonlocal size
        size += len(text)
        if size <= limit:
            parts.append(text)

    try:
        yield from JsonCopy(keep).run(source)
    except Unfinished:
        begun = "".join(parts)[1:]
        if beginnings is not None and not any(text.startswith(begun) for text in beginnings):
            raise Malformed from None
        raise
    if size > limit:
        raise Malformed
    text: str = json.loads("".join(parts))
    return text


def skip_strays(source: Source) -> Steps[None]:
    """Closing brackets too many, which some models write."""
    closers = marks("}", "]")
    while True:
        source.record()
        yield from source.skip_blanks()
        if (yield from source.accept_any(closers)) is None:
            source.rewind()
            return
