"""Calls as Python writes them: [f(a=1, b="x"), g()], or one on each line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo.base.errors import InvalidRequest
from octavo.text.formats.arguments import Arguments, parameters_of
from octavo.text.formats.base import MAX_NAME, Call, CallSink, GrammarBuilder, Tool
from octavo.text.formats.json_copy import MAX_LEXEME
from octavo.text.formats.literals import PythonCopy, word_value
from octavo.text.formats.schema_grammar import separated
from octavo.text.formats.schema_types import Types, resolved
from octavo.text.formats.source import Malformed, Source, Steps, Unfinished, marks

_NAME: Final = re.compile(r"[\w.\-:/]+")
_WORD: Final = re.compile(r"[\w.+\-]+")
_KEY: Final = re.compile(r"[^\W\d]\w*")
_OPENING: Final = re.compile(r"""["'(\[{]""")  # of a value that is no word


@dataclass(frozen=True)
class PythonicCalls:
    """Arguments are literals. Those without a name get the names of the tool's properties, in their order.

    A list without a mark before it is calls only if the first function is known.
    """

    is_list: bool = True  # what the grammar writes; the parser takes both
    before: str = ""
    after: str = ""
    end: str = ""  # what the grammar writes after the calls

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        names = None if opened else frozenset(tools)
        yield from source.skip_blanks()
        is_list = yield from source.accept("[")
        if not is_list and not opened:
            raise Malformed
        yield from source.skip_blanks()
        yield from self._call(source, sink, tools, names)
        while (yield from _another_follows(source, is_list)):
            yield from self._call(source, sink, tools, names)

    def _call(
        self, source: Source, sink: CallSink, tools: Mapping[str, Tool], names: frozenset[str] | None
    ) -> Steps[None]:
        with Call(source, sink, names) as call:
            name = yield from source.run_of(_NAME, MAX_NAME)
            yield from source.skip_blanks()
            if not (yield from source.accept("(")):
                may_go_on = names is None or any(known.startswith(name) for known in names)
                raise Unfinished if may_go_on and (yield from source.is_over()) else Malformed
            call.set_name(name)
            arguments = Arguments(call)
            while (yield from _goes_on(source, arguments)):
                yield from _argument(source, call, arguments, parameters_of(tools, name))
            arguments.end()
            call.close()

    # ------------------------------------------------------------ grammar
    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = build.one_of([_written_call(build, tool) for tool in tools])
        if parallel:
            call = f"{call} ({build.text(', ' if self.is_list else chr(10))} {call})*"
        opening, closing = (build.text("["), build.text("]")) if self.is_list else ("", "")
        end = build.spelled(self.after + self.end)
        return " ".join(filter(None, [build.text(self.before), opening, call, closing, end]))


def _another_follows(source: Source, is_list: bool) -> Steps[bool]:
    """Consumes the end of a list; it may be missing at the end of the text, where no call is open."""
    source.record()
    yield from source.skip_blanks()
    yield from source.accept_any(marks(",", ";"))
    yield from source.skip_blanks()
    if (is_list and (yield from source.accept("]"))) or (yield from source.is_over()):
        source.recorded()
        return False
    if not is_list and not _NAME.match((yield from source.peek())):
        source.rewind()
        return False
    return True


def _goes_on(source: Source, arguments: Arguments) -> Steps[bool]:
    """Another argument follows; else the end is consumed."""
    yield from source.skip_blanks()
    if (yield from source.accept(")")):
        return False
    if arguments.num_members:
        yield from source.expect(",")
        yield from source.skip_blanks()
        return not (yield from source.accept(")"))
    return True


def _argument(source: Source, call: Call, arguments: Arguments, schema: Mapping[str, Any]) -> Steps[None]:
    if call.is_announced:
        source.record()  # until its value begins
    word = yield from source.run_of(_WORD, MAX_LEXEME)
    yield from source.skip_blanks()
    key = None
    if _KEY.fullmatch(word) and (yield from source.accept("=")):
        key = word
        yield from source.skip_blanks()
        word = yield from source.run_of(_WORD, MAX_LEXEME)
    value = word_value(word) if word else ""
    is_last = yield from source.is_over()
    is_cut_off = source.is_truncated and is_last
    if value is None or is_cut_off or (not word and not _OPENING.match((yield from source.peek()))):
        raise Unfinished if is_last else Malformed
    if key is None:
        key = _positional(schema, arguments.num_members)
    if word:
        arguments.key(key, str)
        arguments.put(value)
    else:
        copy = PythonCopy(arguments.put)
        arguments.key(key, copy.completion, copy.held)
        yield from copy.run(source)
    arguments.end_value()


def _positional(schema: Mapping[str, Any], place: int) -> str:
    properties = resolved(schema, schema).get("properties")
    names = list(properties) if isinstance(properties, Mapping) else []
    if place >= len(names):
        raise Malformed
    return str(names[place])


def _written_call(build: GrammarBuilder, tool: Tool) -> str:
    def write(key: str, schema: Any, types: Types) -> str:
        if not _KEY.fullmatch(key):
            raise InvalidRequest(f"The argument {key!r} cannot be written in this tool format.", "tools")
        return f"{build.text(key + '=')} {build.json(schema)}"

    parts = [build.text(tool.name + "("), separated(build, tool, write, ", "), build.text(")")]
    return " ".join(filter(None, parts))
