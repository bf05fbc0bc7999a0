"""Calls that are JSON objects: {"name": ..., "arguments": {...}}, alone, in a list, or one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.text.formats.base import Call, CallSink, GrammarBuilder, Tool, read_string, skip_strays
from octavo.text.formats.json_copy import JsonCopy
from octavo.text.formats.source import BLANKS, Malformed, Marks, Source, Steps, Unfinished, marks

#: Objects within the object of a call: {"type": "function", "function": {...}}.
_MAX_NESTING = 3
_ARGUMENTS = frozenset({"arguments", "parameters", "args", "input"})
#: All keys of a call of which nothing else has shown yet that it is one.
_KEYS = _ARGUMENTS | {"name", "function", "type", "id"}
#: With which a code block of calls begins.
_FENCES = Marks(("```json\n", "```\n"))


@dataclass(frozen=True)
class JsonCalls:
    """`argument_key` and the shape (`is_list`) are what the grammar writes; the parser takes the others too.

    `before`, `between`, `after`: the blanks that the models of the format write inside their marks.
    """

    argument_key: str = "arguments"
    is_list: bool = False
    before: str = ""
    separator: str = ""  # of calls that follow each other without a list; "": each has its own marks
    after: str = ""
    only_known: bool = False  # without a mark, names and keys that are not known make it no call
    is_fenced: bool = False  # the calls may stand in a code block
    end: str = ""  # what the grammar writes after the calls: one of the row's `ends`

    def parse(self, source: Source, sink: CallSink, tools: Mapping[str, Tool], opened: str) -> Steps[None]:
        names = frozenset(tools) if self.only_known and not opened else None
        yield from source.skip_blanks()
        fence = (yield from source.accept_any(_FENCES)) if self.is_fenced else None
        yield from source.skip_blanks()
        yield from self._calls(source, sink, names)
        if fence is not None:
            yield from source.skip_blanks()
            yield from source.accept("```")

    def _calls(self, source: Source, sink: CallSink, names: frozenset[str] | None) -> Steps[None]:
        if (yield from source.accept("[")):
            yield from self._list(source, sink, names)
            yield from skip_strays(source)
            return
        while True:
            yield from self._call(source, sink, names)
            yield from skip_strays(source)
            if not (yield from _goes_on(source)):
                return

    def _list(self, source: Source, sink: CallSink, names: frozenset[str] | None) -> Steps[None]:
        is_empty = True
        while True:
            yield from source.skip_blanks()
            if (yield from source.accept("]")):
                if is_empty:
                    raise Malformed
                return
            if is_empty or (yield from source.accept(",")):
                yield from source.skip_blanks()
            if (yield from source.at("]")):
                continue
            if not is_empty and (yield from source.is_over()):
                return  # the list's end is missing, and no call is open
            yield from self._call(source, sink, names)
            is_empty = False

    def _call(self, source: Source, sink: CallSink, names: frozenset[str] | None) -> Steps[None]:
        with Call(source, sink, names) as call:
            yield from self._object(source, call, 0)
            call.close()

    def _object(self, source: Source, call: Call, depth: int) -> Steps[None]:
        """The members of a call's object, in any order."""
        yield from source.expect("{")
        while True:
            yield from source.skip_blanks()
            if (yield from source.accept("}")):
                return
            if (yield from source.accept(",")):
                continue
            if call.is_announced and (yield from source.at_any(marks('"', "'"))) is None:
                return  # its own end is missing, but the arguments are whole
            key = yield from read_string(source, beginnings=_KEYS if call.is_doubtful else None)
            yield from source.skip_blanks()
            yield from source.expect(":")
            yield from source.skip_blanks()
            yield from self._member(source, call, key, depth)

    def _member(self, source: Source, call: Call, key: str, depth: int) -> Steps[None]:
        char = yield from source.peek()
        if not char:
            raise Unfinished
        if key in ("name", "function") and char in ('"', "'"):
            yield from call.read_name(source)
        elif key == "function" and char == "{" and depth < _MAX_NESTING:
            yield from self._object(source, call, depth + 1)
        elif key in _ARGUMENTS and not call.has_arguments:
            yield from _arguments(source, call, char)
        elif call.is_doubtful and key not in ("type", "id"):
            raise Malformed
        else:
            yield from JsonCopy(lambda text: None).run(source)

    # ------------------------------------------------------------ grammar
    def grammar(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls_text = self._written(build, tools, parallel=parallel)
        return build.one_of([calls_text, _in_fence(build, calls_text)]) if self.is_fenced else calls_text

    def _written(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> str:
        calls = []
        for tool in tools:
            head = f'{{"name": {_quoted(tool.name)}, "{self.argument_key}": '
            calls.append(f"{build.text(head)} {build.json(tool.parameters)} {build.text('}')}")
        call = build.one_of(calls)
        more = build.text(", " if self.is_list else self.separator)
        if parallel and (self.is_list or self.separator):
            call = f"{call} ({more} {call})*"
        opening, closing = (build.text("["), build.text("]")) if self.is_list else ("", "")
        end = build.mark(self.end) if self.end else ""
        return " ".join(filter(None, [build.text(self.before), opening, call, closing, build.text(self.after), end]))

    def fenced(self, build: GrammarBuilder, tools: Sequence[Tool], *, parallel: bool) -> list[str]:
        """The ways to write calls in a code block: one or none."""
        return [_in_fence(build, self._written(build, tools, parallel=parallel))] if self.is_fenced else []

    def or_calls(self, schema: Any, tools: Sequence[Tool], *, parallel: bool) -> Any:
        """The schema of documents that are calls of `tools`, as they are without marks, or that fit `schema`.

        The names of all `$defs` differ.
        """
        definitions = dict(schema.get("$defs", {})) if isinstance(schema, dict) else {}
        calls = []
        for tool in tools:
            arguments = {key: value for key, value in tool.parameters.items() if key != "$defs"}
            definitions |= tool.parameters.get("$defs", {})
            members = {"name": {"const": tool.name}, self.argument_key: arguments}
            calls.append(
                {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}
            )
        call: Any = {"anyOf": calls}
        if self.is_list:
            call = {"type": "array", "items": call, "minItems": 1} | ({} if parallel else {"maxItems": 1})
        own = {key: value for key, value in schema.items() if key != "$defs"} if isinstance(schema, dict) else schema
        return {"anyOf": [own, call], "$defs": definitions}


def _in_fence(build: GrammarBuilder, text: str) -> str:
    return f"{build.text(_FENCES.texts[0])} {text} {build.text(chr(10) + '```')}"


def _goes_on(source: Source) -> Steps[bool]:
    """Another call follows, perhaps after a separator. What else follows is left alone."""
    source.record()
    yield from source.skip_blanks()
    if (yield from source.accept_any(marks(";", ","))) is not None:
        yield from source.skip_blanks()
    if (yield from source.at("{")):
        return True
    if source.is_truncated and (yield from source.is_over()):
        source.recorded()
        return False
    source.rewind()
    return False


def _arguments(source: Source, call: Call, char: str) -> Steps[None]:
    """The arguments: an object, null for none, or the JSON text of an object as a string."""
    if char == "{":
        yield from call.copy_json(source)
    elif char in ('"', "'"):
        call.arguments(_object_within((yield from read_string(source, 1 << 24)).strip() or "{}"))
    elif (yield from source.accept("null")) or (yield from source.accept("None")):
        call.arguments("{}")
    else:
        raise (yield from source.failure("null", "None"))


def _object_within(text: str) -> str:
    """The JSON object that `text` is. Raises `Malformed`."""
    inner = Source()
    inner.feed(text)
    inner.end(truncated=False)
    parts: list[str] = []
    copy = JsonCopy(parts.append)
    try:
        next(copy.run(inner), None)
    except Unfinished:  # of this text, not of that around it
        parts.append(copy.completion())
    if not parts[0].startswith("{") or inner.take_rest().strip(BLANKS + "}]"):
        raise Malformed
    return "".join(parts)


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
