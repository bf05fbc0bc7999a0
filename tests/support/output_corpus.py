"""Texts of models and what they mean (`text/corpus/FORMAT/*.json`), and the fold of what a parser makes of pieces."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.text.formats.base import Tool
from octavo.text.formats.output_parser import OutputDelta, OutputFormat, OutputParser
from octavo.text.formats.table import REASONING_FORMATS, TOOL_FORMATS

#: The functions of a case that names none of its own.
TOOLS = tuple(
    Tool(name, {"type": "object", "properties": properties})
    for name, properties in {
        "get_weather": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "add": {"a": {"type": "number"}, "b": {"type": "number"}},
        "search": {"query": {"type": "string"}, "top": {"type": "integer"}},
        "noop": {},
        "f": {
            "text": {"type": "string"},
            "n": {"type": "integer"},
            "x": {"type": "number"},
            "any": {},
            "flag": {"type": "boolean"},
            "list": {"type": "array"},
            "obj": {"type": "object"},
            "maybe": {"type": ["string", "null"]},
        },
    }.items()
)


class Reply:
    """The fold of deltas; whatever breaks a law of streams fails here."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[str] = []
        self._calls: list[tuple[dict[str, str], list[str]]] = []

    def add(self, delta: OutputDelta) -> None:
        self._reasoning.append(delta.reasoning)
        self._content.append(delta.content)
        for call in delta.calls:
            assert call.name is not None or call.arguments, "news of nothing"
            if call.index == len(self._calls):  # F25: a call's first news brings its name, and its id
                assert call.name is not None
                self._calls.append(({"name": call.name, **({"id": call.call_id} if call.call_id else {})}, []))
            else:  # F30: in order; and never twice
                assert call.index == len(self._calls) - 1
                assert call.name is None
                assert call.call_id is None
            self._calls[-1][1].append(call.arguments)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasoning)

    @property
    def content(self) -> str:
        return "".join(self._content)

    @property
    def calls(self) -> list[dict[str, str]]:
        return [{**call, "arguments": "".join(arguments)} for call, arguments in self._calls]

    def events(self) -> dict[str, Any]:
        return {"reasoning": self.reasoning, "content": self.content, "calls": self.calls}


@dataclass(frozen=True)
class Case:
    format_name: str
    name: str
    text: str
    output_format: OutputFormat
    is_truncated: bool
    events: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.format_name}: {self.name}"


def output_format(tools: str | None, reasoning: str | None = None, **more: Any) -> OutputFormat:
    return OutputFormat(
        tools=TOOL_FORMATS[tools] if tools else None,
        reasoning=REASONING_FORMATS[reasoning] if reasoning else None,
        **{"known_tools": TOOLS, **more},
    )


def read(output_format: OutputFormat, pieces: Iterable[str], *, truncated: bool = False) -> Reply:
    parser = OutputParser(output_format)
    reply = Reply()
    for piece in pieces:
        reply.add(parser.push(piece))
    reply.add(parser.finish(truncated=truncated))
    return reply


def corpus() -> list[Case]:
    cases = []
    for path in sorted(Path(__file__).parents[1].glob("text/corpus/*/*.json")):
        name = path.parent.name
        for case in json.loads(path.read_text(encoding="utf-8")):
            tools = [Tool(**tool) for tool in case["tools"]] if "tools" in case else TOOLS
            row = output_format(
                None if name == "none" else name,
                case.get("reasoning"),
                known_tools=tools,
                is_thinking=case.get("thinking"),
            )
            cases.append(Case(name, case["name"], case["text"], row, case.get("truncated", False), case["events"]))
    return cases


CASES = corpus()
