"""Calls of FunctionGemma and Gemma 4: call:F{k:<escape>v<escape>,n:1}."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from octavo.text.formats.base import MAX_NAME, Call, CallSink, GrammarBuilder, Tool, read_name
from octavo.text.formats.literals import KeyedCopy
from octavo.text.formats.schema_grammar import raw_string, separated
from octavo.text.formats.schema_types import STRING, Types, property_types
from octavo.text.formats.source import Malformed, Source, Steps, marks

_OPENING: Final = "call:"
#: A key that needs no quotes, and an object's keywords that the grammar knows to write without JSON.
_KEY: Final = re.compile(r"[^\s:{}\[\],\"'<]+")
_IS_OBJECT: Final = frozenset({"object"})
_IS_LIST: Final = frozenset({"array"})
_OBJECT: Final = frozenset({"type", "properties", "required", "additionalProperties", "$defs", "definitions"})
_LIST: Final = frozenset({"type", "items", "$defs", "definitions"})
#: Objects and lists in each other; what is deeper is written as JSON.
_MAX_DEPTH: Final = 6


@dataclass(frozen=True)
class KeyedCalls:
    """`quote` is the mark on both sides of a string."""

    quote: str
    end: str

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        with Call(source, sink) as call:
            yield from source.skip_blanks()
            yield from source.expect(_OPENING)
            name = yield from read_name(source, marks("{", "\n", self.end), MAX_NAME)
            if not (yield from source.at("{")):
                raise Malformed
            call.set_name(name)
            copy = KeyedCopy(call.arguments, self.quote)
            call.completion, call.held = copy.completion, copy.held
            yield from copy.run(source)
            call.close()

    # ------------------------------------------------------------ grammar
    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        call = build.one_of([f"{build.text(_OPENING + tool.name)} {self._object(build, tool, 0)}" for tool in tools])
        return f"{call} {build.mark(self.end)}"

    def _object(self, build: GrammarBuilder, tool: Tool, depth: int) -> str:
        def write(key: str, schema: Any, types: Types) -> str:
            written = key if _KEY.fullmatch(key) else f"{self.quote}{key}{self.quote}"
            return f"{build.spelled(written + ':')} {self._value(build, tool, schema, types, depth)}"

        members = separated(build, tool, write, ",")
        return " ".join(filter(None, [build.text("{"), members, build.text("}")]))

    def _value(self, build: GrammarBuilder, tool: Tool, schema: Any, types: Types, depth: int) -> str:
        if types == STRING:
            return f"{build.mark(self.quote)} {raw_string(build, tool, schema, (self.quote,), '', self.quote)}"
        inner = Tool(tool.name, schema)
        if types == _IS_OBJECT and schema.get("properties") and not schema.keys() - _OBJECT and depth < _MAX_DEPTH:
            return self._object(build, inner, depth + 1)
        if types == _IS_LIST and "items" in schema and not schema.keys() - _LIST and depth < _MAX_DEPTH:
            items = property_types({**schema, "properties": {"item": schema["items"]}}, "item")
            value = schema["items"] if isinstance(schema["items"], dict) else {}
            definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
            item = build.one_of([self._value(build, tool, value | definitions, items, depth + 1)])
            return f"{build.text('[')} ({item} ({build.text(',')} {item})*)? {build.text(']')}"
        return build.json(schema)
