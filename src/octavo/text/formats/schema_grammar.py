"""Grammars of arguments that are written one by one and not as one JSON object."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from octavo.base.errors import InvalidRequest
from octavo.text.formats.base import GrammarBuilder, Tool
from octavo.text.formats.schema_types import Types, property_types, resolved

#: (key, its schema, its types) -> the Lark text that writes the argument.
Write = Callable[[str, Any, Types], str]

#: Keywords that say something of the arguments together.
_TOGETHER: Final = ("anyOf", "oneOf", "allOf", "patternProperties", "minProperties", "maxProperties", "enum", "const")


def arguments(tool: Tool, write: Write) -> Iterator[tuple[str, bool]]:
    """The Lark text of each argument, in the order of the schema, and whether it is required.

    No other arguments are written. Raises `InvalidRequest` for a schema that this does not honour.
    """
    root = tool.parameters
    schema = resolved(root, root)
    for keyword in _TOGETHER:
        if keyword in schema:
            raise _refused(tool, f"`{keyword}` at the root of its parameters")
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    if missing := [name for name in required if name not in properties]:
        raise _refused(tool, f"the required argument {missing[0]!r}, which is not among its properties,")
    definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
    for key, value in properties.items():
        if value is False:
            continue
        yield (
            write(key, ({} if value is True else dict(value)) | definitions, property_types(root, key)),
            key in required,
        )


def in_sequence(tool: Tool, write: Write) -> str:
    """The arguments one after the other."""
    return " ".join(text if is_required else f"({text})?" for text, is_required in arguments(tool, write))


def separated(build: GrammarBuilder, tool: Tool, write: Write, separator: str) -> str:
    """The arguments with a separator between any two."""
    parts = list(arguments(tool, write))
    more = build.text(separator)
    rest = ""  # what follows an argument
    first = ""  # the same where none was written yet
    for text, is_required in reversed(parts):
        item = build.one_of([text])
        begun = f"{item} {rest}".strip()
        if is_required:
            first = begun
            rest = f"{more} {item} {rest}".strip()
        else:
            first = f"({begun} | {first})" if first else f"({begun})?"
            rest = f"({more} {item})? {rest}".strip()
        rest, first = (build.one_of([side]) if side else "" for side in (rest, first))
    return first


def raw_string(
    build: GrammarBuilder, tool: Tool, schema: Mapping[str, Any], stops: Sequence[str], line: str, end: str
) -> str:
    """A string without quotes, in which none of the marks `stops` stands, then `line` and the mark `end`, one of them.

    Raises `InvalidRequest` for a schema that this does not honour.
    """
    schema = resolved(schema, schema)
    closing = build.spelled(line + end)
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values is not None:
        texts = [value for value in values if isinstance(value, str)]
        if not texts:
            raise _refused(tool, "an argument that no value fits")
        if any(stop in text for stop in stops for text in texts):
            raise _refused(tool, "a value that contains a mark of the format")
        return build.one_of([f"{build.text(text)} {closing}".strip() for text in texts])
    for keyword in ("pattern", "format", "anyOf", "oneOf", "allOf"):
        if keyword in schema and "string" in str(schema.get("type", "string")):
            raise _refused(tool, f"`{keyword}` of a string")
    least, most = schema.get("minLength", 0), schema.get("maxLength")
    if least or most is not None:
        text = f"[^{_class({stop[0] for stop in stops})}]{{{least},{'' if most is None else most}}}"
    else:
        text = text_without(stops)
    if build.spelled(end) != build.text(end):  # a token of its own, where the text ends by itself
        return f"{build.regex(text)} {closing}"
    # One lexeme: the engine takes the longest, and a text alone would reach into the mark.
    return build.regex(f"{text}{''.join(map(_escaped, line + end))}")


def text_without(stops: Sequence[str]) -> str:
    """A regular expression for the texts in which no stop stands. Stops have their first character nowhere else."""
    head = stops[0][0]
    tails = {stop[1:] for stop in stops}
    return f"[^{_class({head})}]*(?:{_escaped(head)}{_not_beginning(tails, head)})*"


def _not_beginning(tails: set[str], head: str) -> str:
    """Texts without `head` that begin with none of the tails."""
    nexts = sorted({tail[0] for tail in tails})
    parts = [f"[^{_class({head, *nexts})}][^{_class({head})}]*"]
    for char in nexts:
        deeper = {tail[1:] for tail in tails if tail[0] == char}
        if "" not in deeper:
            parts.append(_escaped(char) + _not_beginning(deeper, head))
    return f"(?:{'|'.join(parts)})?"


def _class(chars: set[str]) -> str:
    return "".join(f"\\{char}" if char in "]\\^-/[&~" else char for char in sorted(chars))


def _escaped(char: str) -> str:
    return {"/": "\\/", "\n": "\\n"}.get(char) or re.escape(char)


def _refused(tool: Tool, what: str) -> InvalidRequest:
    return InvalidRequest(f"Calls of {tool.name!r} cannot be enforced in this tool format: {what}.", "tools")
