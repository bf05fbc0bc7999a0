"""Reads a text as one of the output formats, cut as a test wants it, and checks what must hold for any text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from octavo.text.formats.base import Tool
from octavo.text.formats.output_parser import OutputFormat, OutputParser
from octavo.text.formats.registry import reasoning_format, tool_format

TOOLS = (
    Tool(
        "f",
        {
            "type": "object",
            "properties": {
                "s": {"type": "string"},
                "n": {"type": "integer"},
                "b": {"type": "boolean"},
                "o": {"type": "object"},
                "l": {"type": "array"},
                "u": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "x": {},
            },
        },
    ),
    Tool("g", {"type": "object", "properties": {}}),
    Tool("ns.h", {"type": "object", "properties": {"a": {"type": "number"}}}),
)

_WORD_AT_END = re.compile(r"(, *)?[\w.+-]+$")


@dataclass
class Reply:
    """The fold of all deltas. A call is [name, arguments, id]."""

    reasoning: str = ""
    content: str = ""
    calls: list[list[Any]] = field(default_factory=list)


def read(
    name: str | None,
    text: str,
    cuts: Iterable[int] = (),
    *,
    truncated: bool = False,
    reasoning: str | None = None,
    tools: Sequence[Tool] = TOOLS,
    **fields: Any,
) -> Reply:
    rows = OutputFormat(
        tools=tool_format(name) if name else None,
        reasoning=reasoning_format(reasoning) if reasoning else None,
        known_tools=tools,
        **fields,
    )
    parser = OutputParser(rows)
    reply = Reply()
    arguments: list[list[str]] = []
    deltas = [parser.push(text[start:end]) for start, end in pairwise([0, *cuts, len(text)])]
    deltas.append(parser.finish(truncated=truncated))
    for call in (call for delta in deltas for call in delta.calls):
        if call.name is not None:
            assert call.index == len(reply.calls)
            reply.calls.append([call.name, "", call.call_id])
            arguments.append([])
        arguments[call.index].append(call.arguments)
    for merged, parts in zip(reply.calls, arguments, strict=True):
        merged[1] = "".join(parts)
    reply.reasoning = "".join(delta.reasoning for delta in deltas)
    reply.content = "".join(delta.content for delta in deltas)
    return reply


def calls_of(reply: Reply) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments, _ in reply.calls]


def check_laws(name: str | None, text: str, cuts: Iterable[int], **fields: Any) -> Reply:
    """The same however it is cut; arguments are objects; cut off, they are a beginning of what they would have been."""
    whole = read(name, text, **fields)
    for cut in cuts:
        assert read(name, text, [cut], **fields) == whole, cut
        begun = text[:cut]
        ended = read(name, begun, **fields)
        for call in ended.calls:
            assert isinstance(json.loads(call[1]), dict), (begun, call)
        off = read(name, begun, truncated=True, **fields)
        assert read(name, begun, range(len(begun)), truncated=True, **fields) == off, begun
        for before, after in zip(off.calls, whole.calls, strict=False):
            # A word that was begun is passed on as it is, even where the rest of it makes it none.
            begun_arguments = before[1] if after[1].startswith(before[1]) else _WORD_AT_END.sub("", before[1])
            assert before[0] == after[0] and after[1].startswith(begun_arguments), (begun, before, after)
    assert read(name, text, range(len(text)), **fields) == whole
    for call in whole.calls:
        assert isinstance(json.loads(call[1]), dict), call
    return whole
