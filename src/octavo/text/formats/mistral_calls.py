"""Calls of Mistral's models: a JSON list after the mark, or, since their tokenizer 11, a name and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from octavo.text.formats.base import CallSink, GrammarBuilder, Tool
from octavo.text.formats.json_calls import JsonCalls
from octavo.text.formats.named_calls import NamedCalls
from octavo.text.formats.source import Source, Steps

ARGS: Final = "[ARGS]"
CALL_ID: Final = "[CALL_ID]"
_LIST: Final = JsonCalls(is_list=True, before=" ")
_NAMED: Final = NamedCalls((ARGS,), id_mark=CALL_ID, begin="[TOOL_CALLS]")


@dataclass(frozen=True)
class MistralCalls:
    """Both forms are parsed; `is_list` is the one that the grammar writes."""

    is_list: bool

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        yield from source.skip_blanks()
        char = yield from source.peek()
        yield from (_LIST if char in ("[", "{") else _NAMED).parse(source, sink, tools, opened)

    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        return (_LIST if self.is_list else _NAMED).grammar(build, tools, parallel=parallel)
