"""Calls whose arguments stand between tags, one by one, without quotes: <function=F><parameter=K>V</parameter>..."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from octavo.base.errors import InvalidRequest
from octavo.text.formats.arguments import Arguments, Value, parameters_of
from octavo.text.formats.base import MAX_NAME, Call, CallSink, GrammarBuilder, Tool, read_name
from octavo.text.formats.schema_grammar import in_sequence, raw_string
from octavo.text.formats.schema_types import ANY, STRING, Types, property_types
from octavo.text.formats.source import Malformed, Marks, Source, Steps, Unfinished, marks

#: A name that was not offered: no prose, and no JSON.
_NAME: Final = re.compile(r"""[^\s<>"'{}()\[\],=]+""")


@dataclass(frozen=True)
class TaggedCalls:
    """`opening` name `name_end`, then for each argument `key_open` key `key_end` value `value_end`; `closing`.

    Ends that are missing are taken for granted where the next tag shows that they are. `blank` is what the grammar
    writes between tags. See `Value` for what the text of a value means.
    """

    opening: str  # "": the mark of the row is followed by the name
    name_end: str  # a line break: it may be missing
    key_open: str
    key_end: str
    value_end: str
    closing: str
    end: str  # what follows the calls: one of the row's `ends`, or `closing` itself
    value_open: str = ""  # where it is a tag of its own
    prefix: str = ""  # may stand between the row's mark and `opening`
    blank: str = ""
    strips_newlines: bool = False  # a value stands on lines of its own
    has_string_flag: bool = False  # `key_end` is preceded by true or false: whether the value is a string
    tail: str = ""  # that the grammar writes after `end`
    is_repeated: bool = False  # several calls may stand between the marks of the row

    @property
    def blank_before_name(self) -> str:
        return self.blank if self.opening else ""

    @cached_property
    def _name_stops(self) -> Marks:
        return marks(self.name_end, self.key_open, self.closing)

    @cached_property
    def _value_stops(self) -> Marks:
        return marks(self.value_end, self.key_open, self.closing, self.end)

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        is_open = opened == self.opening  # and else it follows
        while True:
            yield from self._call(source, sink, tools, is_open)
            if not self.opening:
                return
            is_open = False
            source.record()
            yield from source.skip_blanks()
            if not (yield from source.at(self.opening)):
                if source.is_cut_within(self.opening):
                    raise Unfinished
                source.rewind()
                return

    def _call(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], is_open: bool) -> Steps[None]:
        with Call(source, sink) as call:
            yield from source.skip_blanks()
            if self.prefix and (yield from source.accept(self.prefix)):
                yield from source.skip_blanks()
            elif self.prefix and source.is_cut_within(self.prefix):
                raise Unfinished
            if self.opening and not is_open:
                yield from source.expect(self.opening)
            name = yield from read_name(source, self._name_stops, MAX_NAME)
            if name not in tools and not _NAME.fullmatch(name):
                raise Malformed
            call.set_name(name)
            yield from source.accept(self.name_end)
            arguments = Arguments(call)
            while (yield from self._goes_on(source, call)):
                yield from self._argument(source, call, arguments, parameters_of(tools, name))
            arguments.end()
            call.close()

    def _goes_on(self, source: Source, call: Call) -> Steps[bool]:
        yield from source.skip_blanks()
        if (yield from source.at(self.key_open)):
            return True
        if (yield from source.accept(self.closing)) or (yield from source.at(self.end)):
            return False
        raise (yield from source.failure(self.key_open, self.closing, self.end))

    def _argument(self, source: Source, call: Call, arguments: Arguments, schema: Mapping[str, Any]) -> Steps[None]:
        if call.is_announced:
            source.record()  # until the value begins
        yield from source.expect(self.key_open)
        key = yield from source.text_until(marks(self.key_end, "\n", self.value_end), MAX_NAME)
        yield from source.expect(self.key_end)
        types = yield from self._types(source, schema, key)
        if self.value_open:
            yield from source.skip_blanks()
            yield from source.expect(self.value_open)
        value = Value(arguments, key, types, strips_newlines=self.strips_newlines)
        if (yield from source.copy_until(self._value_stops, value.add, drops_cut_mark=True)) is None:
            raise Unfinished
        value.end()
        yield from source.accept(self.value_end)

    def _types(self, source: Source, schema: Mapping[str, Any], key: str) -> Steps[Types]:
        if not self.has_string_flag:
            return property_types(schema, key)
        is_string = yield from source.accept("true")
        if not is_string and not (yield from source.accept("false")):
            raise (yield from source.failure("true", "false"))
        yield from source.expect('">')
        return STRING if is_string else ANY

    # ------------------------------------------------------------ grammar
    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = build.one_of([self._written_call(build, tool) for tool in tools])
        if parallel and self.is_repeated:
            call = f"({call})+"
        return f"{call} {build.spelled(self.blank + self.end + self.tail)}" if self.end != self.closing else call

    def _written_call(self, build: GrammarBuilder, tool: Tool) -> str:
        def write(key: str, schema: Any, types: Types) -> str:
            return self._written_argument(build, tool, key, schema, types)

        after_name = self.name_end + (self.blank if self.name_end != self.blank else "")
        head = [build.spelled(self.blank_before_name + self.prefix + self.opening), build.text(tool.name)]
        parts = [*head, build.spelled(after_name), in_sequence(tool, write), build.spelled(self.closing)]
        return " ".join(filter(None, parts))

    def _written_argument(self, build: GrammarBuilder, tool: Tool, key: str, schema: Any, types: Types) -> str:
        is_string = types is not ANY and "string" in types
        line = "\n" if self.strips_newlines else ""
        flag = ("true" if is_string else "false") + '">' if self.has_string_flag else ""
        opening = f"{self.key_end}{flag}{self.blank + self.value_open if self.value_open else ''}{line}"
        if any(mark in key for mark in (self.key_end, self.value_end, "\n")):
            raise InvalidRequest(f"The argument {key!r} cannot be written in this tool format.", "tools")
        head = [build.spelled(self.key_open), build.text(key), build.spelled(opening)]
        if is_string:
            value = raw_string(build, tool, schema, self._value_stops.texts, line, self.value_end)
        else:
            value = f"{build.json(schema)} {build.spelled(line + self.value_end)}"
        return " ".join(filter(None, [*head, value, build.spelled(self.blank)]))
