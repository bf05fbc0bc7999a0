"""Calls that are a name, a mark, and the JSON object of the arguments."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from octavo.text.formats.base import MAX_NAME, Call, CallSink, GrammarBuilder, Tool, read_name
from octavo.text.formats.source import Malformed, Source, Steps, Unfinished, marks

_NUMBERED = re.compile(r"(?:functions\.)?(.+?)(?::(\d+))?")


@dataclass(frozen=True)
class NamedCalls:
    """`opening` name `separator` {arguments} `closing`.

    `separators`: what may stand between name and arguments, the usual one first. `closing`: in parts, of which each
    may be missing. `id_mark` begins an id before the
    separator. `is_numbered`: the name is written functions.NAME:INDEX, which is the call's id as well.
    """

    separators: tuple[str, ...]
    opening: str = ""
    closing: tuple[str, ...] = ()
    id_mark: str = ""
    is_numbered: bool = False
    begin: str = ""  # with which a further call begins, when one is asked for
    end: str = ""  # what the grammar writes after all calls

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        with Call(source, sink) as call:
            yield from source.skip_blanks()
            if self.opening:
                yield from source.accept(self.opening)
            stops = marks(*self.separators, *([self.id_mark] if self.id_mark else []), "{")
            name = yield from read_name(source, stops, 2 * MAX_NAME)
            if self.id_mark and (yield from source.accept(self.id_mark)):
                call.call_id = (yield from source.text_until(stops, MAX_NAME)).strip()
            if self.is_numbered and (found := _NUMBERED.fullmatch(name)) is not None:
                call.call_id, name = (name if found[2] else None), found[1]
            if not name or any(char.isspace() for char in name):  # prose that a brace happens to follow
                raise Malformed
            call.set_name(name)
            separator = yield from source.at_any(marks(*self.separators))
            if source.is_cut_within(*self.separators):
                raise Unfinished
            source.take(len(separator or ""))
            yield from call.copy_json(source)
            call.close()
        for mark in self.closing:
            source.record()
            yield from source.skip_blanks()
            if not (yield from source.accept(mark.strip())):
                if source.is_cut_within(mark.strip()):
                    raise Unfinished
                source.rewind()

    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = []
        for tool in tools:
            name = build.text(tool.name)
            if self.is_numbered:
                name = f"{build.text(f'functions.{tool.name}:')} {build.regex('[0-9]{1,3}')}"
            before = [build.spelled(self.opening), name, build.spelled(self.separators[0])]
            after = [build.json(tool.parameters), build.spelled("".join(self.closing))]
            calls.append(" ".join(filter(None, [*before, *after])))
        call = build.one_of(calls)
        if parallel and self.begin:
            call = f"{call} ({build.mark(self.begin)} {call})*"
        return f"{call} {build.mark(self.end)}" if self.end else call
