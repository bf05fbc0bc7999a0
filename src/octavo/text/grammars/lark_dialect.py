"""Grammars in the notation of the Lark library, in the dialect that the grammar engine reads.

The engine knows most of it. What says nothing of the language, how a tree is shaped and which of two readings is taken,
is left out: priorities, here, and `?`, `!` and `-> alias`, by the engine itself. Templates are written out, and
`%override` and `%extend` are applied. What would change the language and cannot be said is refused by name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(
    r"""(?P<comment>//[^\n]*|\#[^\n]*)
    |(?P<string>"(?:\\.|[^"\\\n])*"i?)
    |(?P<regex>/(?!/)(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[imslux]*)
    |(?P<special><[^<>\s]*>)
    |(?P<newline>\n)
    |(?P<space>[ \t\r]+)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<other>->|\.\.|.)""",
    re.VERBOSE | re.DOTALL,
)
#: The head of a definition: markers, name, parameters or attributes, priority.
_PRIORITY: Final = re.compile(r"[ \t]*\.[ \t]*-?\d+")
_MAX_EXPANSIONS: Final = 2_000
_MAX_BYTES: Final = 1 << 20


class LarkError(Exception):
    """The grammar uses what cannot be held; the text is for its author."""


@dataclass
class _Token:
    kind: str
    text: str


@dataclass
class _Definition:
    """A rule or a terminal, or another statement, which has no name."""

    name: str = ""
    head: str = ""  # markers, name and attributes, as they are written
    parameters: list[str] = field(default_factory=list)
    body: list[_Token] = field(default_factory=list)
    statement: str = ""  # "%override", "%extend", or another statement, whole


def plain_lark(text: str) -> str:
    """The grammar without what the engine does not read. Raises `LarkError`."""
    definitions = _parsed(text)
    definitions = _replaced(definitions)
    templates = {d.name: d for d in definitions if d.parameters}
    expander = _Expander(templates)
    lines = [expander.written(d) for d in definitions if not d.parameters]
    return "\n".join([*lines, *expander.lines]) + "\n"


# ------------------------------------------------------------------------------------------------ reading
def _tokens(text: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind == "comment":
            continue
        found.append(_Token(kind, match[0]))
    return found


def _parsed(text: str) -> list[_Definition]:
    definitions: list[_Definition] = []
    for line in _statements(_tokens(text)):
        first = next(token for token in line if token.kind != "space")
        if first.text == "%":
            definitions.append(_statement(line))
        else:
            definitions.append(_definition(line))
    return definitions


def _statements(tokens: list[_Token]) -> list[list[_Token]]:
    """The tokens of each statement: a line, and those after it that begin with `|` or stand in brackets."""
    statements: list[list[_Token]] = []
    depth = 0
    begins = True
    for i, token in enumerate(tokens):
        if token.kind == "newline":
            begins = begins or (depth <= 0 and not _goes_on(tokens, i))
            if statements and not begins:
                statements[-1].append(token)
            continue
        if begins and token.kind == "space":
            continue
        if begins:
            statements.append([])
            begins = False
        depth += (token.text in "([{") - (token.text in ")]}") if token.kind == "other" else 0
        statements[-1].append(token)
    return statements


def _goes_on(tokens: list[_Token], newline: int) -> bool:
    """The line after this newline goes on with an alternative, or with the body of a head that had none."""
    before, after = newline - 1, newline + 1
    while before >= 0 and tokens[before].kind in ("space", "newline"):
        before -= 1
    while after < len(tokens) and tokens[after].kind in ("space", "newline"):
        after += 1
    return (after < len(tokens) and tokens[after].text == "|") or (before >= 0 and tokens[before].text in (":", "|"))


def _statement(line: list[_Token]) -> _Definition:
    text = "".join(token.text for token in line)
    word = re.match(r"%[ \t]*(\w+)", text)
    name = word[1] if word else ""
    if name in ("override", "extend"):
        definition = _definition(_after_word(line))
        definition.statement = f"%{name}"
        return definition
    if name == "declare":
        raise LarkError("%declare names terminals that only a program of the author's can read")
    if name == "import" and re.match(r"%import[ \t]+\.", text):
        raise LarkError("%import of another file: only the terminals of `common` are there")
    return _Definition(statement=text)


def _after_word(line: list[_Token]) -> list[_Token]:
    seen = False
    for i, token in enumerate(line):
        if seen and token.kind != "space":
            return line[i:]
        seen = seen or token.kind == "name"
    raise LarkError("a statement without a rule")


def _definition(line: list[_Token]) -> _Definition:
    colon = _colon(line)
    head = "".join(token.text for token in line[:colon])
    found = re.fullmatch(
        r"(?P<marks>[?!]*)(?P<name>[A-Za-z_]\w*)[ \t]*(?:\{(?P<parameters>[^{}]*)\})?(?P<rest>[^{}]*)", head.strip()
    )
    if found is None:
        raise LarkError(f"{head.strip()[:60]!r} is not the head of a rule")
    rest = _PRIORITY.sub("", found["rest"], count=1).strip()
    parameters = [name.strip() for name in (found["parameters"] or "").split(",") if name.strip()]
    marks = "" if parameters else found["marks"]
    return _Definition(found["name"], f"{marks}{found['name']}{rest}", parameters, line[colon + 1 :])


def _colon(line: list[_Token]) -> int:
    for i, token in enumerate(line):
        if token.text == ":" and token.kind == "other":
            return i
    raise LarkError(f"{''.join(token.text for token in line).strip()[:60]!r} is neither a rule nor a statement")


# ------------------------------------------------------------------------------------------------ writing
def _replaced(definitions: list[_Definition]) -> list[_Definition]:
    """With `%override` and `%extend` applied."""
    result: list[_Definition] = []
    for definition in definitions:
        if definition.statement not in ("%override", "%extend"):
            result.append(definition)
            continue
        place = next((i for i, other in enumerate(result) if other.name == definition.name), None)
        is_override = definition.statement == "%override"
        if place is None:
            # Of something imported: a definition of one's own stands in its place, which an import would repeat.
            raise LarkError(f"{definition.statement} of {definition.name!r}, which is not defined before it")
        body = definition.body
        if not is_override:
            body = [*result[place].body, _Token("other", "|"), *definition.body]
        result[place] = _Definition(definition.name, result[place].head, result[place].parameters, body)
    return result


class _Expander:
    """Writes definitions out; each use of a template becomes a rule of its own."""

    def __init__(self, templates: dict[str, _Definition]) -> None:
        self._templates = templates
        self._names: dict[tuple[str, tuple[str, ...]], str] = {}
        self._num_bytes = 0
        self.lines: list[str] = []

    def written(self, definition: _Definition) -> str:
        if not definition.name:
            return definition.statement
        return f"{definition.head}:{self._body(definition.body, {})}"

    def _body(self, tokens: list[_Token], values: dict[str, str]) -> str:
        parts: list[str] = []
        i = 0
        while i < len(tokens):
            token = tokens[i]
            text = token.text
            if token.kind == "name":
                if text in values:
                    text = values[text]
                elif i + 1 < len(tokens) and tokens[i + 1].text == "{" and text in self._templates:
                    i, arguments = self._arguments(tokens, i + 1, values)
                    text = self._use(token.text, arguments)
            parts.append(text)
            i += 1
        body = "".join(parts)
        self._num_bytes += len(body)
        if self._num_bytes > _MAX_BYTES:
            raise LarkError("its templates become too long")
        return body

    def _arguments(self, tokens: list[_Token], opening: int, values: dict[str, str]) -> tuple[int, list[str]]:
        """The index of the closing brace, and what stands between the commas."""
        depth, start = 0, opening + 1
        arguments: list[str] = []
        for i in range(opening, len(tokens)):
            token = tokens[i]
            if token.kind != "other":
                continue
            depth += (token.text in "([{") - (token.text in ")]}")
            if (token.text == "," and depth == 1) or depth == 0:
                arguments.append(self._body(tokens[start:i], values).strip())
                start = i + 1
            if depth == 0:
                return i, arguments
        raise LarkError("a brace is not closed")

    def _use(self, name: str, arguments: list[str]) -> str:
        template = self._templates[name]
        if len(arguments) != len(template.parameters):
            raise LarkError(f"the template {name!r} takes {len(template.parameters)} arguments, not {len(arguments)}")
        key = (name, tuple(arguments))
        if key not in self._names:
            if len(self._names) >= _MAX_EXPANSIONS:
                raise LarkError("it uses templates too often")
            rule = f"{name.lower()}__{len(self._names)}".lstrip("_")
            self._names[key] = rule
            values = {
                parameter: argument if re.fullmatch(r'\w+|"(?:\\.|[^"\\])*"i?', argument) else f"({argument})"
                for parameter, argument in zip(template.parameters, arguments, strict=True)
            }
            self.lines.append(f"{rule}:{self._body(template.body, values)}")
        return self._names[key]
