"""What the grammar of a format makes a model write is read back as calls whose arguments are valid (F6, F10)."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from octavo.base.errors import InvalidRequest
from octavo.text.formats.base import Tool, ToolFormat
from octavo.text.formats.table import TOOL_FORMATS
from octavo.text.grammars.grammar import GrammarLimits
from octavo.text.grammars.held_tools import prepared_tools
from octavo.text.grammars.tool_grammar import SpecialTokens, calls_among_text, required_calls
from support.format_reader import read
from support.grammar_walk import Walker, accepts, grammar_of

SCHEMAS: dict[str, dict[str, Any]] = {
    "nothing": {"type": "object", "properties": {}},
    "one": {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]},
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "b": {"type": "boolean"}},
        "required": ["s"],
    },
    "open-ended": {"type": "object", "properties": {"a": {"type": "number"}, "u": {"type": ["string", "null"]}}},
    "nested": {
        "type": "object",
        "properties": {
            "p": {"$ref": "#/$defs/point"},
            "l": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
            "unit": {"enum": ["c", "f"]},
        },
        "required": ["p", "unit"],
        "$defs": {
            "point": {
                "type": "object",
                "properties": {"x": {"type": "integer"}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
}
PIPELINE_REASONING = {"openai": "openai"}
NO_TOKENS = SpecialTokens()


def _tools() -> list[Tool]:
    tools = [Tool(f"do_{name}", schema) for name, schema in SCHEMAS.items()]
    return prepared_tools(tools, [f"tools.{i}" for i in range(len(tools))], GrammarLimits())


def _walks(row: ToolFormat, spec: Any, num_walks: int) -> list[str]:
    """Texts of the grammar. Marks are likely, so that values come to their ends."""
    strings = [text for text in vars(row.body).values() if isinstance(text, str)]
    texts = {text for text in (*row.marks, *strings) if len(text) > 1}
    walker = Walker(sorted(texts | {f"\n{text}" for text in texts}))
    grammar = grammar_of(spec)
    texts = [text for seed in range(4 * num_walks) if (text := walker.walk(grammar, seed, 600)) is not None]
    assert len(texts) >= num_walks, f"{len(texts)} walks came to their ends"
    return texts[:num_walks]


@pytest.mark.parametrize("name", TOOL_FORMATS)
@pytest.mark.parametrize("parallel", [False, True])
def test_what_a_grammar_lets_through_are_calls_with_valid_arguments(name: str, parallel: bool) -> None:
    tools = _tools()
    spec = required_calls(TOOL_FORMATS[name], tools, NO_TOKENS, "tool_choice", parallel=parallel)
    for text in _walks(TOOL_FORMATS[name], spec, 8):
        reply = read(name, text, range(0, len(text), 3), tools=tools, reasoning=PIPELINE_REASONING.get(name))
        assert reply.calls, text
        assert len(reply.calls) == 1 or parallel, text
        assert not reply.content.strip(), (text, reply)
        for call, arguments, _ in reply.calls:
            schema = SCHEMAS[call.removeprefix("do_")]
            jsonschema.validate(json.loads(arguments), schema)


@pytest.mark.parametrize("name", [name for name, row in TOOL_FORMATS.items() if not row.openers])
def test_calls_among_text_may_be_text_alone(name: str) -> None:
    grammar = grammar_of(calls_among_text(TOOL_FORMATS[name], _tools(), NO_TOKENS, parallel=True))
    is_whole = TOOL_FORMATS[name].among_text is not None  # then text has marks of its own
    assert accepts(grammar, ("<|channel|>final<|message|>" if is_whole else "") + "Just\n text < [ { .")


_STEP = "<\uff5ctool_{}\uff5c>".format
_DSML = "\uff5cDSML\uff5c"
#: A call of f(s=VALUE) as each format writes it; the marks that no value can contain.
TAGGED = {
    "qwen3_coder": (
        "<tool_call>\n<function=f>\n<parameter=s>\nVALUE\n</parameter>\n</function>\n</tool_call>",
        ["</parameter>", "<parameter=", "</function>", "</tool_call>"],
    ),
    "seed_oss": (
        "<seed:tool_call>\n<function=f>\n<parameter=s>VALUE</parameter>\n</function>\n</seed:tool_call>",
        ["</parameter>", "<parameter=", "</function>", "</seed:tool_call>"],
    ),
    "glm45": (
        "<tool_call>f\n<arg_key>s</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>",
        ["</arg_value>", "<arg_key>", "</tool_call>"],
    ),
    "glm47": (
        "<tool_call>f<arg_key>s</arg_key><arg_value>VALUE</arg_value></tool_call>",
        ["</arg_value>", "<arg_key>", "</tool_call>"],
    ),
    "minimax_m2": (
        '<minimax:tool_call>\n<invoke name="f">\n<parameter name="s">VALUE</parameter>\n</invoke>\n'
        "</minimax:tool_call>",
        ["</parameter>", '<parameter name="', "</invoke>", "</minimax:tool_call>"],
    ),
    "deepseek_v32": (
        f'<{_DSML}function_calls>\n<{_DSML}invoke name="f">\n<{_DSML}parameter name="s" string="true">VALUE'
        f"</{_DSML}parameter>\n</{_DSML}invoke>\n</{_DSML}function_calls>",
        [f"</{_DSML}parameter>", f"</{_DSML}invoke>"],
    ),
    "step3": (
        f'{_STEP("calls_begin")}{_STEP("call_begin")}function{_STEP("sep")}<steptml:invoke name="f">'
        '<steptml:parameter name="s">VALUE</steptml:parameter></steptml:invoke>'
        f"{_STEP('call_end')}{_STEP('calls_end')}",
        ["</steptml:parameter>", "</steptml:invoke>", _STEP("call_end")],
    ),
}
VALUES = ["", "\n", "a\n\n", "<b>bold</b>", "</", "1 < 2 & 3 > 2", "{}[]\"'\\", "</para", "\xe9", "5", "<<</arg"]


@pytest.mark.parametrize("name", TAGGED)
def test_a_string_without_quotes_may_hold_anything_but_marks(name: str) -> None:
    tools = [Tool("f", {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]})]
    grammar = grammar_of(required_calls(TOOL_FORMATS[name], tools, NO_TOKENS, "tool_choice", parallel=False))
    text, marks = TAGGED[name]
    for value in VALUES:
        written = text.replace("VALUE", value)
        assert accepts(grammar, written), written
        reply = read(name, written, range(len(written)), tools=tools)
        assert (json.loads(reply.calls[0][1]), reply.content) == ({"s": value}, ""), written
    for mark in marks:
        assert not accepts(grammar, text.replace("VALUE", f"x{mark}x")), mark


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("qwen3_coder", {"type": "object", "properties": {"s": {"type": "string", "pattern": "^a+$"}}}),
        ("qwen3_coder", {"type": "object", "properties": {"a\nb": {"type": "string"}}}),
        ("qwen3_coder", {"type": "object", "properties": {"s": {"enum": ["</parameter>"]}}}),
        ("glm45", {"type": "object", "properties": {"s": {"type": "string", "enum": [1]}}}),
        ("pythonic", {"type": "object", "properties": {"not a name": {"type": "string"}}}),
        ("pythonic", {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]}),
        ("gemma4", {"type": "object", "required": ["a"]}),
    ],
)
def test_what_a_format_cannot_enforce_is_refused(name: str, schema: dict[str, Any]) -> None:
    """U3: never weakened in silence."""
    with pytest.raises(InvalidRequest, match="tool format"):
        required_calls(TOOL_FORMATS[name], [Tool("f", schema)], NO_TOKENS, "tool_choice", parallel=False)
