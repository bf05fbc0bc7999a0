"""The JSON text of a call's arguments, written member by member while the model writes them in another notation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from octavo.text.formats.base import Call, Tool
from octavo.text.formats.literals import json_inside
from octavo.text.formats.schema_types import ANY, STRING, Types
from octavo.text.json_copy import JsonCopy
from octavo.text.source import Malformed, Source

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")


class Arguments:
    """One object. What was passed to the call is at every moment the beginning of valid JSON."""

    __slots__ = ("_call", "_ending", "num_members")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._ending: Callable[[], str] | None = None  # what makes a whole value of the one that was begun
        self.num_members = 0
        call.completion = self._completion

    def key(self, key: str, ending: Callable[[], str]) -> None:
        """A member begins. `ending`: what is due after all that was `put` since, if no more comes."""
        self._ending = ending
        self._call.arguments(("{" if self.num_members == 0 else ", ") + json.dumps(key, ensure_ascii=False) + ": ")
        self.num_members += 1

    def put(self, text: str) -> None:
        """The next piece of the member's value."""
        if text:
            self._call.arguments(text)

    def end_value(self) -> None:
        """The value is whole. Or no more of it comes: then its ending makes it so."""
        if self._ending is not None:
            self.put(self._ending())
            self._ending = None

    def end(self) -> None:
        """The object is whole."""
        if self.num_members:
            self._call.arguments("}")
            self._call.completion = lambda: ""

    def _completion(self) -> str:
        return ((self._ending() if self._ending is not None else "") + "}") if self.num_members else ""


class Value:
    """A value whose text stands between marks; its type is not to be seen from it but follows from the schema.

    A string is passed on while it comes. Any other value is passed on when it is whole, since only then it is known
    whether it is one: a text that is no JSON of an allowed type is a string. Where the schema allows strings among
    others, or says nothing, JSON of another type must be spelled exactly, so that 007 stays what it is.
    """

    __slots__ = ("_arguments", "_begun", "_newline", "_parts", "_strips", "_types")

    def __init__(self, arguments: Arguments, key: str, types: Types, *, strips_newlines: bool) -> None:
        """`strips_newlines`: one line break after the mark before the value, and one before that after it, are none
        of its text."""
        self._arguments = arguments
        self._types = types
        self._strips = strips_newlines
        self._parts: list[str] | None = None if types == STRING else []
        self._begun = False  # something came
        self._newline = ""  # came last
        arguments.key(key, self._ending)
        if self._parts is None:
            arguments.put('"')

    def add(self, text: str) -> None:
        if not text:
            return
        if self._strips:
            text = self._newline + (text[1:] if not self._begun and text[0] == "\n" else text)
            self._begun = True
            self._newline = "\n" if text.endswith("\n") else ""
            text = text[: len(text) - len(self._newline)]
        if self._parts is None:
            self._arguments.put(json_inside(text))
        else:
            self._parts.append(text)

    def _ending(self) -> str:
        return '"' if self._parts is None else json_of("".join(self._parts), self._types)


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
