"""What a grammar of calls lets a model write is read back as calls that fit their functions (F5, F6, F10, U4)."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import llguidance
import pytest

from octavo.base.errors import InvalidRequest
from octavo.base.grammar import LIMITS, ByteVocabulary
from octavo.base.params import GrammarSpec
from octavo.text.formats.base import Tool, ToolFormat
from octavo.text.formats.output_parser import OutputDelta, OutputFormat, OutputParser
from octavo.text.formats.table import REASONING_FORMATS, TOOL_FORMATS
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from octavo.text.grammars.held_tools import prepared_tools
from octavo.text.grammars.helper import handle
from octavo.text.grammars.tool_grammar import (
    SpecialTokens,
    after_thinking,
    calls_among_text,
    calls_or_content,
    required_calls,
)
from support.grammar_walk import PROVER, accepts

EOS = 256
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "s": {"type": "string", "maxLength": 5},
        "b": {"type": "boolean"},
    },
    "required": ["a"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"f": SCHEMA, "get.it": NOTHING}
TOOLS = [Tool(name, schema) for name, schema in SCHEMAS.items()]
ROWS = list(TOOL_FORMATS.values())


class Vocabulary:
    """The bytes, EOS, and the marks of a format, as special tokens or as plain text."""

    def __init__(self, marks: tuple[str, ...], *, special: bool) -> None:
        self.texts = list(dict.fromkeys(mark for mark in marks if mark.isprintable()))
        self.is_special = special
        ids = {text: EOS + 1 + i for i, text in enumerate(self.texts)} if special else {}
        self.special = SpecialTokens(ids | {"</s>": EOS}, frozenset({EOS}))
        self.tokens = [bytes([i]) for i in range(EOS)] + [b"</s>"] + [text.encode() for text in self.texts]
        vocabulary = ByteVocabulary(self.tokens, [EOS, *ids.values()], [EOS])
        self.tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=[EOS], slices=[])

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            special = next((t for t in self.texts if self.is_special and text.startswith(t)), None)
            ids += [self.special.ids[special]] if special else list(text[0].encode())
            text = text[len(special or text[0]) :]
        return ids

    def walk(self, spec: GrammarSpec, seed: int, begin: str = "") -> str | None:
        """A text of the grammar that begins so, then by any allowed tokens; None when it did not end in time."""
        reply = handle(
            {"kind": spec.kind, "source": spec.source, "options": spec.options, "frames": spec.frames}, PROVER
        )
        assert "grammar" in reply, reply
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(self.tokenizer, reply["grammar"], log_level=0, limits=limits)
        assert not matcher.is_error(), matcher.get_error()
        rng, text = random.Random(seed), begin.encode()
        assert matcher.consume_tokens(self._encoded(begin)), f"{begin!r} is refused"
        for i in range(500):
            allowed = matcher.compute_logit_bias()
            ids = [token for token in range(len(self.tokens)) if allowed[token]]
            assert ids, f"nothing may follow {text!r}"
            token = rng.choices(ids, [_weight(token, i) for token in ids])[0]
            assert matcher.consume_token(token), matcher.get_error()
            if token != EOS:
                text += self.tokens[token]
            if token == EOS or matcher.is_stopped():
                return text.decode()
        return None


def _weight(token: int, place: int) -> float:
    if token >= EOS:
        return 30.0
    char = chr(token)
    if char in '"}])>' or (char in "<" and place > 60):
        return 8.0 if place < 60 else 200.0
    return 1.0 if " " <= char <= "~" else 0.01


def read(row: ToolFormat, text: str) -> OutputDelta:
    parser = OutputParser(OutputFormat(tools=row, known_tools=TOOLS))
    first, rest = parser.push(text), parser.finish(truncated=False)
    assert not rest.calls or not first.calls or rest.calls[0].name is not None
    return OutputDelta("", first.content + rest.content, first.calls + rest.calls)


def tools() -> list[Tool]:
    return prepared_tools(TOOLS, ["tools.0", "tools.1"], GrammarLimits())


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_required_call_is_read_back_and_fits_its_function(row: ToolFormat, special: bool) -> None:
    vocabulary = Vocabulary(row.marks, special=special)
    num_texts = 0
    for parallel in (False, True):
        spec = required_calls(row, tools(), vocabulary.special, "tool_choice", parallel=parallel)
        for seed in range(8):
            text = vocabulary.walk(spec, seed)
            if text is None:
                continue
            num_texts += 1
            delta = read(row, text)
            assert delta.calls and not delta.content, text
            assert parallel or len(delta.calls) == 1
            for call in delta.calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name or ""])
    assert num_texts >= 4


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_calls_of_strict_functions_among_text_fit_them_whatever_the_text(row: ToolFormat, special: bool) -> None:
    vocabulary = Vocabulary(row.marks, special=special)
    spec = calls_among_text(row, tools(), vocabulary.special, parallel=True)
    num_calls = 0
    for seed in range(24):
        text = vocabulary.walk(spec, seed)
        if text is None:
            continue
        for call in read(row, text).calls:
            num_calls += 1
            jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name or ""])
    assert num_calls or row.openers


def test_forced_calls_are_spelled_in_one_way() -> None:
    """A model that was never taught to call would write blanks up to its limit."""
    vocabulary = Vocabulary((), special=False)
    spec = required_calls(TOOL_FORMATS["json"], tools(), vocabulary.special, "tool_choice", parallel=True)
    texts = [text for seed in range(12) if (text := vocabulary.walk(spec, seed)) is not None]
    assert texts
    for text in texts:
        assert text == json.dumps(json.loads(text), ensure_ascii=False)


ANSWER = {
    "type": "object",
    "properties": {"k": {"enum": ["x", "y"]}, "n": {"type": "integer"}},
    "required": ["k"],
    "additionalProperties": False,
}


def answer_spec(schema: Any = ANSWER) -> GrammarSpec:
    spec = spec_of({"guided_json": schema}, GrammarLimits())
    assert spec is not None
    return spec


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_beside_a_document_the_output_is_calls_or_that_document(row: ToolFormat, special: bool) -> None:
    vocabulary = Vocabulary(row.marks, special=special)
    spec = calls_or_content(row, tools(), answer_spec(), vocabulary.special, parallel=True, strict=SCHEMAS)
    kinds = set()
    document = "{" if row.among_text is None else "<|channel|>final<|message|>{"
    opening = "".join([*row.noise[:1], *row.begins[:1]]) or "{"
    for seed in range(24):
        text = vocabulary.walk(spec, seed, (document, opening)[seed % 2])
        if text is None:
            continue
        parser = OutputParser(OutputFormat(tools=row, known_tools=TOOLS))
        first, rest = parser.push(text), parser.finish(truncated=False)
        calls, content = first.calls + rest.calls, first.content + rest.content
        kinds.add(bool(calls))
        if calls:
            assert not content.strip(), text
            for call in calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name or ""])
        else:
            jsonschema.validate(json.loads(content), ANSWER)
    assert False in kinds and (True in kinds or row.openers)


def test_what_begins_like_a_call_cannot_stand_beside_calls() -> None:
    tokens = SpecialTokens()
    with pytest.raises(InvalidRequest, match="begins? as its"):
        calls_or_content(TOOL_FORMATS["pythonic"], tools(), answer_spec({}), tokens, parallel=True)
    hermes = TOOL_FORMATS["hermes"]
    named = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    assert calls_or_content(hermes, tools(), answer_spec(named), tokens, parallel=True)
    with pytest.raises(InvalidRequest, match="may look like a call"):
        calls_or_content(hermes, tools(), answer_spec(named), tokens, parallel=True, strict={"f"})
    any_object = calls_or_content(hermes, tools(), answer_spec({"type": "object"}), tokens, parallel=True, strict={"f"})
    grammar = handle(
        {
            "kind": any_object.kind,
            "source": any_object.source,
            "options": any_object.options,
            "frames": any_object.frames,
        },
        PROVER,
    )["grammar"]
    assert accepts(grammar, '{"k": 1}') and accepts(grammar, '{"name": "f", "arguments": {"a": 1}}')
    assert not accepts(grammar, '{"name": "f", "arguments": {"a": "x"}}') and not accepts(grammar, '{"name": "g"}')


def test_beside_a_document_the_model_may_think_first() -> None:
    row, reasoning = TOOL_FORMATS["hermes"], REASONING_FORMATS["qwen3"]
    vocabulary = Vocabulary((*row.marks, *reasoning.marks), special=True)
    inner = calls_or_content(row, tools(), answer_spec(), vocabulary.special, parallel=True)
    spec = after_thinking(inner, reasoning, vocabulary.special, is_thinking=True)
    assert spec is not None and len(spec.frames) == 2
    texts = [text for seed in range(20) if (text := vocabulary.walk(spec, seed)) is not None]
    assert texts
    for text in texts:
        _, mark, answer = text.partition("</think>")
        delta = read(row, answer.strip())
        assert mark and (delta.calls or jsonschema.validate(json.loads(delta.content), ANSWER) is None)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_loose_tool_is_held_to_what_its_format_can_write(row: ToolFormat) -> None:
    schema = {
        "type": "object",
        "properties": {"s": {"type": "string", "pattern": "^[a-c]+$"}, "n": {"type": "integer"}},
        "required": ["n"],
        "anyOf": [{"required": ["s"]}, {"properties": {"n": {"minimum": 0}}}],
    }
    vocabulary = Vocabulary(row.marks, special=False)
    held = prepared_tools([Tool("f", schema)], ["tools.0"], GrammarLimits(), loose={"f"}, row=row)
    spec = required_calls(row, held, vocabulary.special, "tool_choice", parallel=False)
    arguments = [
        json.loads(call.arguments)
        for seed in range(12)
        if (text := vocabulary.walk(spec, seed)) is not None
        for call in read(row, text).calls
    ]
    assert arguments
    for value in arguments:
        assert isinstance(value["n"], int) and isinstance(value.get("s", ""), str)


def thinking_walks(is_thinking: bool | None, budget: int | None, *, special: bool) -> list[str]:
    row = REASONING_FORMATS["qwen3"]
    vocabulary = Vocabulary(row.marks, special=special)
    inner = GrammarSpec(kind="regex", source="[0-9]{1,3}x", param="guided_regex")
    spec = after_thinking(inner, row, vocabulary.special, is_thinking=is_thinking, budget=budget)
    assert spec is not None
    return [text for seed in range(12) if (text := vocabulary.walk(spec, seed)) is not None]


@pytest.mark.parametrize("special", [False, True])
def test_a_constraint_holds_after_the_thinking_and_only_there(special: bool) -> None:
    """U4, G24."""
    for text in thinking_walks(True, None, special=special):
        _, mark, answer = text.partition("</think>")
        assert mark and answer.strip()[:-1].isdigit() and answer.endswith("x"), text
    texts = thinking_walks(None, None, special=special)
    assert {text.startswith("<think>") for text in texts} == {True, False}
    for text in texts:
        assert text.startswith("<think>") == ("</think>" in text)
    for text in thinking_walks(False, None, special=special):
        assert text[:-1].isdigit()


@pytest.mark.parametrize("special", [False, True])
def test_a_budget_ends_the_thinking(special: bool) -> None:
    for budget in (0, 3):
        texts = thinking_walks(True, budget, special=special)
        assert texts
        assert all(len(text.partition("</think>")[0].encode()) <= budget for text in texts)


def test_the_answer_of_harmony_is_held_to_its_constraint_in_a_message_of_its_own() -> None:
    row, tool_row = REASONING_FORMATS["openai"], TOOL_FORMATS["openai"]
    vocabulary = Vocabulary((*row.extra_marks, *row.marks), special=True)
    inner = GrammarSpec(kind="regex", source="[0-9]{1,3}x", param="guided_regex")
    forced = required_calls(tool_row, tools(), vocabulary.special, "tool_choice", parallel=True)
    thoughts = 0
    for spec, is_call in ((inner, False), (forced, True)):
        framed = after_thinking(spec, row, vocabulary.special, is_thinking=None, is_call=is_call)
        assert framed is not None
        for seed in range(10):
            if (text := vocabulary.walk(framed, seed)) is None:
                continue
            parser = OutputParser(OutputFormat(tools=tool_row, reasoning=row, known_tools=TOOLS))
            delta, rest = parser.push(text), parser.finish(truncated=False)
            content, calls = delta.content + rest.content, delta.calls + rest.calls
            thoughts += bool(delta.reasoning)
            if is_call:
                assert calls and not content, text
            else:
                assert not calls and content[:-1].isdigit() and content.endswith("x"), text
    assert thoughts


def test_a_budget_alone_leaves_the_answer_free() -> None:
    row = REASONING_FORMATS["qwen3"]
    vocabulary = Vocabulary((*row.marks, "<x>"), special=True)
    spec = after_thinking(None, row, vocabulary.special, is_thinking=True, budget=2)
    assert spec is not None
    texts = [text for seed in range(12) if (text := vocabulary.walk(spec, seed)) is not None]
    assert any("<x>" in text.partition("</think>")[2] for text in texts)
    assert after_thinking(None, row, vocabulary.special, is_thinking=False, budget=2) is None


@pytest.mark.parametrize("special_kind", ["json", "choice", "grammar", "structural_tag"])
def test_every_kind_of_constraint_can_stand_after_thinking(special_kind: str) -> None:
    sources: dict[str, Any] = {
        "json": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False},
        "choice": ["yes", "no}"],
        "grammar": 'start: "a" b\nb: "}" | "{"',
        "structural_tag": [{"trigger": "<x>", "begin": "<x>", "schema": {"type": "integer"}, "end": "</x>"}],
    }
    row = REASONING_FORMATS["qwen3"]
    vocabulary = Vocabulary(row.marks, special=False)
    inner = GrammarSpec(kind=special_kind, source=sources[special_kind], param="p")
    spec = after_thinking(inner, row, vocabulary.special, is_thinking=True)
    assert spec is not None
    assert any(vocabulary.walk(spec, seed) is not None for seed in range(12))


def test_special_tokens_are_named_by_their_ids_for_the_engine_and_spelled_for_the_proof() -> None:
    vocabulary = Vocabulary(("<tool_call>",), special=True)
    source = required_calls(TOOL_FORMATS["hermes"], tools(), vocabulary.special, "p", parallel=False).source
    assert f"<[{EOS + 1}]>" in source["lark"] and "<[" not in source["proof"]
    assert '"<tool_call>"' in source["proof"]


@pytest.mark.parametrize(
    ("parameters", "where"),
    [
        ({"type": "object", "properties": {"x": {"uniqueItems": True}}}, "tools.3.function.parameters.properties.x"),
        ({"type": "string"}, "tools.3.function.parameters"),
        ({"type": ["object", "null"]}, "tools.3.function.parameters"),
        ({"type": "object", "properties": {"x": {"enum": ["y" * 70_000]}}}, "tools"),
    ],
)
def test_parameters_that_cannot_be_enforced_are_refused_with_their_place(parameters: Any, where: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepared_tools([Tool("f", parameters)], ["tools.3"], GrammarLimits())
    assert (caught.value.param or "").startswith(where)
