"""From a request's fields to one constraint, or to an error that names the field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.base.errors import InvalidRequest
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from octavo.text.grammars.schema_regex import problem_of
from support.grammar_walk import Refused, accepts, grammar_for, walk

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def tags(**changes: Any) -> dict[str, Any]:
    structure = {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>", **changes}
    return {"structures": [structure], "triggers": ["<f"]}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guided_json": None, "response_format": None},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": None}}},
        {"guided_decoding_backend": "outlines"},
        {"guided_whitespace_pattern": r"[\n ]?"},
    ],
)
def test_g8_g9_no_constraint(fields: dict[str, Any]) -> None:
    assert spec_of(fields, GrammarLimits()) is None


@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"guided_json": SCHEMA}, "json", "guided_json"),
        ({"guided_json": '{"type": "integer"}'}, "json", "guided_json"),
        ({"guided_json": True}, "json", "guided_json"),
        ({"guided_regex": "a+"}, "regex", "guided_regex"),
        ({"guided_choice": ["a", "b", "a"]}, "choice", "guided_choice"),
        ({"guided_grammar": 'start: "a"'}, "grammar", "guided_grammar"),
        ({"guided_grammar": 'root ::= "a"', "guided_decoding_backend": "xgrammar:no-fallback"}, "grammar",
         "guided_grammar"),
        ({"guided_json": SCHEMA, "response_format": {"type": "text"}}, "json", "guided_json"),
        ({"response_format": {"type": "json_object"}}, "json", "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
         "json", "response_format.json_schema.schema"),
        ({"response_format": {"type": "structural_tag", **tags()}}, "structural_tag", "response_format"),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, "json", "structured_outputs.json"),
        ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, "json",
         "structured_outputs.json_object"),
        ({"structured_outputs": {"choice": ["a"]}}, "choice", "structured_outputs.choice"),
        # G21
        ({"structured_outputs": {"structural_tag": tags()}}, "structural_tag", "structured_outputs.structural_tag"),
    ],
)  # fmt: skip
def test_one_constraint(fields: dict[str, Any], kind: str, param: str) -> None:
    spec = spec_of(fields, GrammarLimits())
    assert spec is not None and (spec.kind, spec.param) == (kind, param)


ERRORS: list[tuple[dict[str, Any], str]] = [
    # D8: one constraint a request, all kinds counted
    ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
    ({"guided_grammar": "x", "guided_choice": ["a"]}, "guided_grammar"),
    ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "response_format"),
    ({"guided_regex": "a", "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {"json": SCHEMA, "regex": "a"}}, "structured_outputs"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"json_object": False}}, "structured_outputs"),
    ({"structured_outputs": "json"}, "structured_outputs"),
    ({"structured_outputs": {"banana": 1}}, "structured_outputs.banana"),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": "yes"}},
     "structured_outputs.disable_any_whitespace"),
    ({"structured_outputs": {"json": SCHEMA, "whitespace_pattern": "x"}}, "structured_outputs.whitespace_pattern"),
    ({"structured_outputs": {"json_object": "yes"}}, "structured_outputs.json_object"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "response_format.schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"items": {"if": {}}}}}},
     "response_format.json_schema.schema.items.if"),
    ({"guided_json": "{"}, "guided_json"),
    ({"guided_json": "[" * 5000}, "guided_json"),
    ({"guided_json": '{"minimum": NaN}'}, "guided_json"),
    ({"guided_json": [1]}, "guided_json"),
    ({"guided_json": {"enum": ["x" * 70_000]}}, "guided_json"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_regex": 5}, "guided_regex"),
    ({"guided_regex": "a" * 70_000}, "guided_regex"),
    ({"guided_regex": "(?=a)"}, "guided_regex"),
    ({"guided_regex": "["}, "guided_regex"),
    ({"guided_regex": "a\x00"}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_choice": [""]}, "guided_choice"),
    ({"guided_choice": "ab"}, "guided_choice"),
    ({"guided_choice": ["\ud800"]}, "guided_choice"),
    ({"guided_choice": ["x"] * 10_001}, "guided_choice"),
    ({"guided_grammar": {}}, "guided_grammar"),
    ({"guided_grammar": " "}, "guided_grammar"),
    ({"guided_decoding_backend": "banana"}, "guided_decoding_backend"),
    ({"guided_decoding_backend": 5}, "guided_decoding_backend"),
    ({"guided_whitespace_pattern": "a"}, "guided_whitespace_pattern"),
    ({"guided_whitespace_pattern": r"\s*"}, "guided_whitespace_pattern"),
    ({"guided_whitespace_pattern": 5}, "guided_whitespace_pattern"),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"structural_tag": "{"}}, "structured_outputs.structural_tag"),
    ({"structured_outputs": {"structural_tag": tags(begin="g")}}, "structured_outputs.structural_tag.structures.0"),
    ({"structured_outputs": {"structural_tag": tags(end="<|eot|>")}}, "structured_outputs.structural_tag.structures.0"),
    ({"structured_outputs": {"structural_tag": tags(schema={"if": {}})}},
     "structured_outputs.structural_tag.structures.0.schema.if"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param"), ERRORS, ids=lambda value: str(value)[:80])
def test_g1_to_g10_errors_name_the_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        spec_of(fields, GrammarLimits(special_tokens=frozenset({"<|eot|>"})))
    assert caught.value.param == param
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"guided_regex": r"a/b\/c\d?"}, ["a/b/c", "a/b/c7"], ["a/b", "xa/b/c"]),
        ({"guided_regex": r"^(yes|no)$"}, ["yes", "no"], ["yes no", ""]),
        ({"guided_regex": "a\nb"}, ["a\nb"], ["a b"]),
        ({"guided_choice": ['é"\n', "a\\b", "a", "ab", "</s>"]}, ['é"\n', "a\\b", "a", "ab", "</s>"], ["b", "a\\"]),
        ({"guided_grammar": 'start: "a" b*\nb: "c"'}, ["a", "acc"], ["c"]),
        ({"guided_grammar": 'root ::= "a" [0-9]+ # digits\n'}, ["a1", "a10"], ["a", "1"]),
        ({"guided_grammar": 'root ::= first "b"\nfirst ::= "start: a"\n'}, ["start: ab"], ["a"]),
        ({"response_format": {"type": "json_object"}}, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", ""]),
        ({"structured_outputs": {"structural_tag": tags()}}, ["hi", "x <f=a>12</f> y", "<f=a>1</f><f=a>2</f>"],
         ["<f=b>", "<f=a>x</f>", "<f=a>1"]),
    ],
)  # fmt: skip
def test_grammars_admit_their_texts_and_no_others(fields: dict[str, Any], good: list[str], bad: list[str]) -> None:
    grammar = grammar_for(**fields)
    assert [accepts(grammar, text) for text in good + bad] == [True] * len(good) + [False] * len(bad)


@pytest.mark.parametrize(
    "grammar",
    ['start: %json {"type": "string"}', '%llguidance {"max_tokens": 5}\nstart: "a"', "%llguidance {x}\nstart: b",
     "nonsense @@", 'start: missing', 'start: start "a"', "start: /(?=a)/"],
)  # fmt: skip
def test_grammars_that_cannot_be_used_are_refused(grammar: str) -> None:
    with pytest.raises(Refused):
        grammar_for(guided_grammar=grammar)


@given(
    pattern=st.recursive(
        st.sampled_from(["a", "b", r"\d", r"\.", "[ab]", "[^a]", ".", "é", "/"]),
        lambda inner: st.one_of(
            st.builds("{}{}".format, inner, inner),
            st.builds("(?:{}|{})".format, inner, inner),
            st.builds("(?:{}){}".format, inner, st.sampled_from(["*", "+", "?", "{1,3}", "+?"])),
        ),
        max_leaves=6,
    ),
    seed=st.integers(0, 100),
)
def test_a_text_of_a_regex_matches_it_wholly(pattern: str, seed: int) -> None:
    assert problem_of(pattern) is None
    text = walk(grammar_for(guided_regex=pattern), seed, 60)
    assert text is None or re.fullmatch(pattern, text)
