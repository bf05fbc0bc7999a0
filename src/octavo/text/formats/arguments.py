"""The JSON text of a call's arguments, written member by member while the model writes them in another notation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from octavo.text.formats.base import Call, Tool
from octavo.text.formats.json_copy import JsonCopy
from octavo.text.formats.literals import json_inside
from octavo.text.formats.schema_types import ANY, STRING, Types
from octavo.text.formats.source import Malformed, Source

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")


class Arguments:
    """One object. What was passed to the call is at every moment the beginning of valid JSON.

    A key is passed on with the first of its value. So where a text breaks off, none is left without one.
    """

    __slots__ = ("_call", "_ending", "_head", "_held", "_is_begun", "num_members")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._head = ""  # of the member whose value has not begun
        self._ending = self._held = _nothing  # of the value that has not ended
        self._is_begun = False  # something was passed on
        self.num_members = 0
        call.completion, call.held = self._completion, self._not_passed_on

    def key(self, key: str, ending: Callable[[], str], held: Callable[[], str] | None = None) -> None:
        """A member begins. `ending`: what is due after all that was `put` since, if no more comes; "" where that is
        nothing. `held`: what else was written of the value."""
        self._head = ("{" if self.num_members == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": "
        self._ending, self._held = ending, held or _nothing
        self.num_members += 1

    def put(self, text: str) -> None:
        """The next piece of the member's value."""
        if text:
            self._is_begun = True
            self._call.arguments(self._head + text)
            self._head = ""

    def end_value(self) -> None:
        """The value is whole."""
        self._ending = self._held = _nothing

    def end(self) -> None:
        """The object is whole."""
        if self.num_members:
            self._call.arguments("}")
        self._call.completion = self._call.held = _nothing

    def _completion(self) -> str:
        ending = self._ending()
        if self._head and ending:
            return self._head + ending + "}"
        return ending + "}" if self._is_begun else ""

    def _not_passed_on(self) -> str:
        return self._head + self._held()


def _nothing() -> str:
    return ""


class Value:
    """A value whose text stands between marks; its type is not to be seen from it but follows from the schema.

    A string is passed on while it comes. Any other value is passed on when it is whole, since only then it is known
    whether it is one: a text that is no JSON of an allowed type is a string. Where the schema allows strings among
    others, or says nothing, JSON of another type must be spelled exactly, so that 007 stays what it is.
    """

    __slots__ = ("_arguments", "_begun", "_is_passed_on", "_newline", "_parts", "_strips", "_types")

    def __init__(self, arguments: Arguments, key: str, types: Types, *, strips_newlines: bool) -> None:
        """`strips_newlines`: one line break after the mark before the value, and one before that after it, are none
        of its text."""
        self._arguments = arguments
        self._types = types
        self._strips = strips_newlines
        self._parts: list[str] | None = None if types == STRING else []
        self._begun = False  # something came
        self._is_passed_on = False  # the beginning of a string
        self._newline = ""  # came last
        arguments.key(key, self._ending)

    def add(self, text: str) -> None:
        if not text:
            return
        if self._strips:
            text = self._newline + (text[1:] if not self._begun and text[0] == "\n" else text)
            self._begun = True
            self._newline = "\n" if text.endswith("\n") else ""
            text = text[: len(text) - len(self._newline)]
        if self._parts is not None:
            self._parts.append(text)
        elif text:
            self._arguments.put(json_inside(text) if self._is_passed_on else '"' + json_inside(text))
            self._is_passed_on = True

    def end(self) -> None:
        """The value is whole, be it empty."""
        self._arguments.put(self._ending() or '""')
        self._arguments.end_value()

    def _ending(self) -> str:
        if self._parts is None:
            return '"' if self._is_passed_on else ""
        return json_of("".join(self._parts), self._types) if self._parts else ""


def json_of(text: str, types: Types) -> str:
    """The JSON text of a value of one of the types, or of a string."""
    value = _mended(text.strip())
    if value is not None and _is_allowed(value, text.strip(), types):
        return value
    return json.dumps(text, ensure_ascii=False)


def _mended(text: str) -> str | None:
    """`text` as JSON, if all of it is one value."""
    source = Source()
    source.feed(text)
    source.end(truncated=False)
    parts: list[str] = []
    try:
        next(JsonCopy(parts.append).run(source), None)
    except Malformed:
        return None
    return "".join(parts) if source.num_consumed == len(text) else None


def _is_allowed(value: str, text: str, types: Types) -> bool:
    kind = _kind(value)
    if kind == "null" and text not in ("null", "None"):
        return False
    is_number = kind in ("integer", "number")
    if is_number and value != text and (types is ANY or "string" in types):
        return False
    if kind == "string":
        return types is ANY and text[0] == '"'
    return types is ANY or kind in types or (kind == "integer" and "number" in types)


def _kind(value: str) -> str:
    names = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}
    if (name := names.get(value[0])) is not None:
        return name
    return "integer" if _INTEGER.fullmatch(value) else "number"


def parameters_of(tools: Mapping[str, Tool], name: str | None) -> Mapping[str, Any]:
    """The schema of a function's arguments; {}, which allows anything, for one that is not known."""
    tool = tools.get(name or "")
    return tool.parameters if tool is not None else {}
