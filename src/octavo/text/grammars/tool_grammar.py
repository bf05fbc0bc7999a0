"""Grammars that make a model write calls as its format spells them, and constraints that begin after its thinking.

Everything is Lark text in the dialect of the grammar engine. Marks that are special tokens of the vocabulary are named
by their ids; `proof` texts spell them instead, for the helper that proves grammars over a vocabulary of bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from octavo.base.errors import InvalidRequest
from octavo.base.params import GrammarSpec
from octavo.text.formats.base import ReasoningFormat, Tool, ToolFormat
from octavo.text.formats.json_calls import JsonCalls
from octavo.text.grammars.grammar import CALL_OPTIONS, COMPILER_OPTIONS
from octavo.text.grammars.schema_unions import Unions, types_of

_TEXT = r"TEXT: /(.|\n)*/"
_GAP = r"GAP: /[ \t\r\n]{0,4}/"


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a vocabulary: text -> id. `eos_ids` may end a text, and are never a part of one."""

    ids: Mapping[str, int] = field(default_factory=dict)
    eos_ids: frozenset[int] = frozenset()

    def within(self, texts: Collection[str]) -> frozenset[int]:
        """The ids of all special tokens that are written in `texts`."""
        return frozenset(i for token, i in self.ids.items() if any(token in text for text in texts))


class Builder:
    """`formats.base.GrammarBuilder`, and the rules that are made on the way."""

    def __init__(self, tokens: SpecialTokens, *, proof: bool, options: Mapping[str, Any] = COMPILER_OPTIONS) -> None:
        """`options`: of the JSON compiler."""
        self._proof = proof
        self._options = dict(options)
        self._ids = tokens.ids
        self._free_ids = sorted(set(tokens.ids.values()) - tokens.eos_ids)
        self._special = re.compile("(" + "|".join(map(re.escape, sorted(tokens.ids, key=len, reverse=True))) + ")")
        self.rules: list[str] = []

    # ------------------------------------------------------------ pieces
    def mark(self, text: str) -> str:
        return self.spelled(text)

    def text(self, text: str) -> str:
        return json.dumps(text, ensure_ascii=False) if text else ""

    def spelled(self, text: str) -> str:
        if not self._ids:
            return self.text(text)
        parts = self._special.split(text)  # special tokens at the odd places
        return " ".join(
            part for i, piece in enumerate(parts) if (part := self._token(piece) if i % 2 else self.text(piece))
        )

    def json(self, schema: Any) -> str:
        if isinstance(schema, bool):
            schema = {} if schema else {"enum": []}
        return f"%json {json.dumps(schema | {'x-guidance': self._options})}"

    def regex(self, pattern: str) -> str:
        return f"/{pattern}/"

    def one_of(self, alternatives: Sequence[str]) -> str:
        return self.rule(" | ".join(alternatives))

    def rule(self, body: str, attributes: str = "") -> str:
        """The name of a new rule."""
        name = f"rule_{len(self.rules)}"
        self.rules.append(f"{name}{attributes}: {body}")
        return name

    def _token(self, text: str) -> str:
        return self.text(text) if self._proof else f"<[{self._ids[text]}]>"

    # ------------------------------------------------------------ free text
    def any_special(self, without: Sequence[str] = ()) -> str:
        """Any special token that ends nothing, but for those whose texts are given; "" if there is none."""
        left = [i for i in self._free_ids if i not in {self._ids.get(text) for text in without}]
        if not left:
            return ""
        return self.text("\x01") if self._proof else f"<[{_ranges(left)}]>"

    def terminal(self, regex: str) -> str:
        """The name of a new terminal."""
        name = f"TEXT_{len(self.rules)}"
        self.rules.append(f"{name}: {regex}")
        return name

    def until(self, mark: str, *, budget: int | None = None, text: str = "TEXT") -> str:
        """A text of the terminal `text` up to the first `mark`, and that mark, which comes after `budget` tokens."""
        spelled = self.spelled(mark)
        limit = f"max_tokens={budget}" if budget is not None else ""
        if budget == 0:
            return spelled
        if spelled.startswith("<["):
            return f"{self.rule(text, f'[{limit}]' if limit else '')} {spelled}"
        if budget is None:
            return self.rule(f"{text} {spelled}", "[lazy]")
        return f"{self.rule(text, f'[{limit}, stop={spelled}]')} {spelled}"

    def lark(self, start: str) -> str:
        """The whole grammar."""
        return "\n".join([f"start: {start}", *self.rules, _TEXT, _GAP])


def _ranges(ids: Sequence[int]) -> str:
    """Sorted ids as "1-3,7"."""
    parts: list[list[int]] = []
    for i in ids:
        if parts and i == parts[-1][1] + 1:
            parts[-1][1] = i
        else:
            parts.append([i, i])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _both(
    tokens: SpecialTokens, make: Callable[[Builder], str], options: Mapping[str, Any] = COMPILER_OPTIONS
) -> dict[str, str]:
    """The grammar for the engine and the one for the proof."""
    texts = {}
    for name, proof in (("lark", False), ("proof", True)):
        builder = Builder(tokens, proof=proof, options=options)
        texts[name] = builder.lark(make(builder))
    return texts


# ------------------------------------------------------------------------------------------------ calls
def required_calls(
    row: ToolFormat, tools: Sequence[Tool], tokens: SpecialTokens, param: str, *, parallel: bool
) -> GrammarSpec:
    """The output is at least one call of `tools`, one if not `parallel`, and nothing else."""
    source = _both(tokens, lambda build: _calls(build, row, tools, parallel), CALL_OPTIONS)
    return GrammarSpec(kind="lark", source=source, param=param)


def calls_among_text(row: ToolFormat, tools: Sequence[Tool], tokens: SpecialTokens, *, parallel: bool) -> GrammarSpec:
    """The output is text with calls in it: once one was begun, it is a call of one of `tools`."""

    def start(build: Builder) -> str:
        if row.among_text is not None:
            return row.among_text(build, tools, "TEXT")
        segments = _segments(build, row, tools, "TEXT", parallel=parallel)
        if not row.openers:
            return f"({segments})* TEXT"
        # A text that begins like a bare call is one.
        first = build.terminal(rf"/([^\s{re.escape(row.openers)}](.|\n)*)?/")
        bare = (row.bare_body or row.body).grammar(build, tools, parallel=parallel)
        if not row.begins:
            return f"{bare} | {first}"
        return f"{bare} | {first} | ({_segments(build, row, tools, first, parallel=parallel)}) ({segments})* TEXT"

    return GrammarSpec(kind="lark", source=_both(tokens, start), param="tools")


def calls_or_content(
    row: ToolFormat,
    tools: Sequence[Tool],
    content: GrammarSpec,
    tokens: SpecialTokens,
    *,
    parallel: bool,
    strict: Collection[str] = (),
) -> GrammarSpec:
    """The output is calls of `tools`, or what `content`, a constraint of the kind "json", asks for.

    Calls without a mark are JSON, too: they become an alternative of the schema, because the engine reads a text by
    one grammar of JSON at a time. Raises `InvalidRequest` where the two begin alike and cannot be told apart, also
    where a document may look like a call of one of the tools `strict`.
    """
    bare = row.bare_body or row.body
    json_body = bare if row.openers and isinstance(bare, JsonCalls) else None
    _check_beginnings(row, content, tokens, is_bare_json=json_body is not None)

    def start(build: Builder) -> str:
        if row.among_text is not None:
            return row.among_text(build, tools, "body")
        ways = ["body"]
        for begin in row.begins:
            opening = "".join([*row.noise[:1], begin])
            ways.append(_units(build, row, opening, row.body.grammar(build, tools, parallel=parallel), parallel))
        if json_body is not None:
            ways += json_body.fenced(build, tools, parallel=parallel)
        elif row.openers:
            ways.append(bare.grammar(build, tools, parallel=parallel))
        return " | ".join(ways)

    source = content.source
    if json_body is not None:
        if strict:
            source = _unlike_calls(row, tools, content)
        source = json_body.or_calls(source, tools, parallel=parallel)
    frame = _both(tokens, start, content.options)
    return GrammarSpec(kind="json", source=source, param=content.param, options=content.options, frames=(frame,))


#: With which characters JSON of a type begins.
_FIRST: Final = {"object": "{", "array": "[", "string": '"', "number": "-0123456789", "boolean": "tf", "null": "n"}


def _check_beginnings(row: ToolFormat, content: GrammarSpec, tokens: SpecialTokens, *, is_bare_json: bool) -> None:
    first = "".join(_FIRST[kind] for kind in types_of(content.source))
    marks = () if row.among_text is not None else tuple("".join([*row.noise[:1], begin]) for begin in row.begins)
    texts = [mark for mark in marks if not any(mark.startswith(token) for token in tokens.ids)]
    if any(text[0] in first for text in texts) or (not is_bare_json and any(char in first for char in row.openers)):
        raise InvalidRequest(
            f"`{content.param}` cannot stand beside `tools` with the tool format {row.name}, whose calls begin as its "
            "documents do. Ask for a JSON object, or use `tool_choice`.",
            content.param,
        )


def _unlike_calls(row: ToolFormat, tools: Sequence[Tool], content: GrammarSpec) -> Any:
    """The schema of `content` without documents that would be read as a call, whose arguments nothing holds."""
    names = [tool.name for tool in tools]
    call = {
        "anyOf": [
            {"type": "object", "required": ["name"], "properties": {"name": {"enum": names}}},
            {"type": "object", "required": ["function"]},
            {"type": "array", "minItems": 1},
        ]
    }
    source = content.source if isinstance(content.source, dict) else {}
    unions = Unions(source.get("$defs", {}))
    if unions.disjoint([content.source], [call]):
        return content.source
    plain = {"type": "object", "properties": {"name": False, "function": False}}
    if unions.disjoint([content.source], [plain]):
        raise InvalidRequest(
            f"A document of `{content.param}` may look like a call, and with the tool format {row.name} would be read "
            "as one, but a tool is strict. Ask for an object that has neither `name` nor `function`.",
            content.param,
        )
    return source | {"allOf": [*source.get("allOf", []), plain]}


def _segments(build: Builder, row: ToolFormat, tools: Sequence[Tool], text: str, *, parallel: bool) -> str:
    """Alternatives: a text of the terminal `text` up to a call, and the call; or up to a special token."""
    calls = [
        f"{build.until(begin, text=text)} {row.body.grammar(build, tools, parallel=parallel)}" for begin in row.begins
    ]
    special = build.any_special(row.begins)
    return " | ".join([*calls, *([f"{text} {special}"] if special else [])])


def _calls(build: Builder, row: ToolFormat, tools: Sequence[Tool], parallel: bool) -> str:
    opening = "" if row.openers and row.bare_body is None else "".join([*row.noise[:1], *row.begins[:1]])
    return _units(build, row, opening, row.body.grammar(build, tools, parallel=parallel), parallel)


def _units(build: Builder, row: ToolFormat, opening: str, body: str, parallel: bool) -> str:
    """One call or several, each with its marks."""
    unit = " ".join(filter(None, [build.spelled(opening), body]))
    if parallel and row.repeats:
        unit = build.rule(unit)
        return f"{unit} ({build.text(row.between)} {unit})*"
    return unit


# ------------------------------------------------------------------------------------------------ after thinking
def after_thinking(
    spec: GrammarSpec | None,
    row: ReasoningFormat,
    tokens: SpecialTokens,
    *,
    is_thinking: bool | None,
    is_call: bool = False,
    budget: int | None = None,
) -> GrammarSpec | None:
    """`spec` for what comes after the thinking (U4), which has at most `budget` tokens.

    `is_thinking` is that of `output_parser.OutputFormat`; `is_call`: `spec` has the marks of its calls. The result is
    None when nothing is to be enforced.
    """
    if is_thinking is False or (spec is None and budget is None):
        return spec

    def start(build: Builder) -> str:
        body = "body"
        if spec is None:
            special = build.any_special()
            body = f"(TEXT {special})* TEXT" if special else "TEXT"
        elif row.answer and not is_call:
            body = f"{build.spelled(row.answer)} body"
        thought = f"{build.until(row.end, budget=budget)} GAP"
        begin = build.spelled(row.begin)
        if is_thinking:
            return f"{thought} {body}"
        if row.is_implicit:
            return f"{begin}? {thought} {body}"
        return f"({begin} {thought})? {body}"

    frame = _both(tokens, start)
    if spec is None:
        return GrammarSpec(kind="lark", source=frame, param="thinking_token_budget")
    return msgspec.structs.replace(spec, frames=(*spec.frames, frame))
