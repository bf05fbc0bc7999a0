"""U3: a schema is honoured in full or refused by name. The table of docs/structured-outputs.md, row by row."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.base.errors import InvalidRequest
from octavo.text.grammars.grammar import GrammarLimits, spec_of
from octavo.text.grammars.json_schema import prepare, prepare_loosely
from octavo.text.grammars.schema_keywords import UNSUPPORTED
from support.grammar_walk import ANY_SIZE, Refused, accepts, grammar_for, grammar_of, walk
from support.schema_checks import check

DOCS = Path(__file__).parents[2] / "docs" / "structured-outputs.md"
DEEP: Any = {"type": "string"}
for _ in range(70):
    DEEP = {"type": "array", "items": DEEP}


def _animal(*kinds: str, **more: Any) -> Any:
    kind = {"const": kinds[0]} if len(kinds) == 1 else {"enum": list(kinds)}
    return {"type": "object", "properties": {"kind": kind, "n": {"type": "integer"}}, "required": ["kind"], **more}


def _refs(*names: str) -> list[Any]:
    return [{"$ref": f"#/$defs/{name}"} for name in names]


ANIMALS: Any = {"A": _animal("a"), "B": _animal("b", "c")}
#: `oneOf` of alternatives that exclude each other, or can be made to.
UNIONS: list[Any] = [
    {"$defs": ANIMALS, "oneOf": _refs("A", "B")},
    {"$defs": ANIMALS | {"C": {"$ref": "#/$defs/A"}}, "oneOf": _refs("C", "B")},
    {"$defs": ANIMALS, "oneOf": [{"allOf": [*_refs("A"), {"required": ["n"]}]}, *_refs("B"), {"type": "null"}]},
    {"$defs": ANIMALS, "oneOf": [{"anyOf": [*_refs("A"), {"type": "null"}]}, *_refs("B")]},
    {"$defs": ANIMALS, "oneOf": _refs("A", "B"),
     "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/A", "b": "#/$defs/B"}}},
    {"$defs": {"t": {"type": "object", "properties": {"l": {"$ref": "#/$defs/u"}, "k": {"const": 1}},
                     "required": ["k", "l"]},
               "u": {"oneOf": [*_refs("t"), {"type": "object", "properties": {"k": {"const": 2}}, "required": ["k"]}]}},
     "$ref": "#/$defs/u"},
    {"oneOf": [{"enum": ["a", "b"]}, {"const": "c"}, {"type": "integer"}, {"type": ["null", "boolean"]}]},
    {"oneOf": [{"type": "integer", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}]},
    {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "string", "minLength": 5}, {"const": "abcd"}]},
    {"oneOf": [{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}]},
    {"oneOf": [{"type": "array", "items": {"type": t}, "minItems": 1} for t in ("string", "integer")]},
    # only one of two keys
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
     "oneOf": [{"type": "object", "required": ["a"]}, {"type": "object", "required": ["b"]}]},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}},
     "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"oneOf": [{"properties": {"k": {"const": k}}, "required": ["k"]} for k in ("a", "b")]},  # no type
    {"oneOf": [{"type": "object", "properties": {k: {"type": "null"}}, "required": [k], "additionalProperties": False}
               for k in ("a", "b", "c")]},
]  # fmt: skip

#: Keyword -> schemas of which every generated document must be valid.
ENFORCED: dict[str, list[Any]] = {
    "type": [{"type": t} for t in ("string", "number", "integer", "boolean", "null", "array", "object")]
    + [{"type": ["string", "null"]}, {}],
    "enum": [{"enum": [1, "a", None, {"a": 1}, [1], True, 1.5]}, {"type": "string", "enum": ["a", 1]}],
    "const": [{"const": {"a": [1, 2]}}, {"const": 'é"\n\\'}, {"const": 0.25}],
    "minimum": [{"type": "integer", "minimum": -3}, {"type": "number", "minimum": 0.1, "maximum": 0.3}],
    "maximum": [{"type": "integer", "minimum": 5, "maximum": 17}, {"maximum": 3}],
    "exclusiveMinimum": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1, "exclusiveMinimum": True},
    ],
    "exclusiveMaximum": [{"type": "integer", "exclusiveMaximum": 10, "minimum": 0}],
    "multipleOf": [{"type": "integer", "multipleOf": 3, "minimum": 10, "maximum": 40}, {"multipleOf": 1.5}],
    "minLength": [{"type": "string", "minLength": 2, "maxLength": 4}],
    "maxLength": [{"type": "string", "maxLength": 3}, {"type": "string", "pattern": "a+", "maxLength": 4}],
    "pattern": [
        {"type": "string", "pattern": p} for p in (
            "b", "^a|b$", r"^\d{2}-\w$", "^[^a]{2}$", r"^[a-c\]]{1,3}$", r"^(?=.*[A-Z])(?=.*\d)[A-Za-z0-9]{3,}$",
            r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$",
            r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$",
        )
    ],
    "format": [
        {"type": "string", "format": f}
        for f in ("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "uuid4",
                  "uri-reference", "uri-template", "json-pointer", "relative-json-pointer", "iri", "idn-email", "byte")
    ]
    + [{"type": "integer", "format": "int32"}, {"type": "string", "format": "date", "pattern": "^20"}]
    + [{"type": "string", "format": "phone"}, {"type": "number", "format": "double"}],
    "items": [
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "integer"}, {"type": "string"}]},
    ],
    "prefixItems": [{"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False}],
    "additionalItems": [
        {
            "$schema": "http://json-schema.org/draft-07/schema#",
            "items": [{"type": "integer"}], "additionalItems": {"type": "boolean"},
        }
    ],
    "minItems": [{"type": "array", "minItems": 2, "items": {"type": "boolean"}}],
    "maxItems": [{"type": "array", "maxItems": 2}, {"type": "array", "maxItems": 1, "uniqueItems": True}],
    "properties": [
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a", "z"]},
    ],
    "required": [{"type": "object", "required": ["b", "a"], "properties": {"a": {"type": "null"}}}],
    "additionalProperties": [
        {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
        {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "integer"}},
    ],
    "patternProperties": [
        {"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
        {"type": "object", "properties": {"ab": {"type": "integer"}}, "patternProperties": {"^a": {"minimum": 3}}},
    ],
    "minProperties": [
        {"type": "object", "properties": {"a": {}}, "required": ["a"], "minProperties": 1},
        {"type": "object", "minProperties": 1},
        {"type": "object", "properties": {"a": {}, "b": {"type": "null"}}, "minProperties": 1},
    ],
    "maxProperties": [
        {"type": "object", "maxProperties": 2},
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {}}, "maxProperties": 1},
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {}}, "minProperties": 1, "maxProperties": 1},
        {"type": "object", "properties": {"a": {"type": "null"}, "b": {}}, "required": ["b"], "maxProperties": 1},
        {"type": "object", "properties": {"a": {}}, "maxProperties": 0},
    ],
    "propertyNames": [
        {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "null"}},
        {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "propertyNames": {"pattern": "^[a-c]{1,2}$"}, "additionalProperties": {"type": "null"}},
        {"type": "object", "propertyNames": {"maxLength": 3}, "properties": {"ab": {}, "abcd": {}}},
        {"$defs": {"k": {"anyOf": [{"const": "a"}, {"const": "b"}]}}, "type": "object",
         "propertyNames": {"$ref": "#/$defs/k"}, "properties": {"a": {"type": "null"}}},
    ],
    "dependentRequired": [
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
    ],
    "dependentSchemas": [
        {"type": "object", "properties": {"a": {}, "b": {"type": "integer"}},
         "dependentSchemas": {"a": {"properties": {"b": {"maximum": 3}}, "required": ["b"]}}},
    ],
    "dependencies": [
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": {"a": {}, "b": {}},
         "dependencies": {"a": ["b"], "b": {"required": ["c"]}}},
    ],
    "unevaluatedProperties": [
        {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": False},
        {"type": "object", "properties": {"a": {"type": "null"}}, "unevaluatedProperties": {"type": "integer"}},
    ],
    "unevaluatedItems": [{"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False}],
    "nullable": [{"type": "integer", "nullable": True}, {"type": "string", "enum": ["a", None], "nullable": True}],
    "not": [
        {"anyOf": [{"not": {}}, {"type": "string"}]},
        {"not": {"type": ["string", "number"]}},
        {"enum": ["a", "b", 1], "not": {"enum": ["a", True]}},
        {"type": "object", "properties": {"a": {}, "b": {"type": "null"}}, "not": {"required": ["a"]}},
        {"type": "object", "properties": {"never": {"not": {}}, "b": {"type": "null"}}},
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}},
         "not": {"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}},
    ],
    "anyOf": [
        {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 2}]},
        {
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}},
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
    ],
    "oneOf": [
        {"oneOf": [{"type": "integer"}, {"type": "string"}]},
        {
            "oneOf": [
                {"type": "object", "properties": {"k": {"const": k}}, "required": ["k"]} for k in ("a", "b")
            ]
        },
        *UNIONS,
    ],
    "allOf": [{"allOf": [{"minimum": 3}, {"maximum": 5}], "type": "integer"}],
    "$ref": [
        {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a", "minimum": 3},
        {"definitions": {"t": {"type": "object", "properties": {"n": {"$ref": "#/definitions/t"}}}},
         "$ref": "#/definitions/t"},
    ],
    "$recursiveRef": [
        {"$schema": "https://json-schema.org/draft/2019-09/schema", "$recursiveAnchor": True, "type": "object",
         "properties": {"a": {"type": "array", "items": {"$recursiveRef": "#"}}}, "required": ["a"]},
    ],
    "$dynamicRef": [
        {"$dynamicAnchor": "n", "type": "object", "required": ["a"],
         "properties": {"a": {"type": "array", "items": {"$dynamicRef": "#n"}}}},
    ],
    "$anchor": [{"$defs": {"a": {"$anchor": "q", "type": "integer"}}, "$ref": "#q"}],
}  # fmt: skip

#: Keyword -> a schema that is refused, and where.
REFUSED: dict[str, tuple[Any, str]] = {
    "if": ({"properties": {"a": {"if": {}, "then": {"minLength": 2}}}}, "s.properties.a.if"),
    "contains": ({"contains": {"type": "integer"}}, "s.contains"),
    "uniqueItems": ({"items": {"uniqueItems": True}}, "s.items.uniqueItems"),
    "x-guidance": ({"x-guidance": {"lenient": True}}, "s.x-guidance"),
    "extends": ({"extends": {}}, "s.extends"),
    "disallow": ({"disallow": "string"}, "s.disallow"),
    "divisibleBy": ({"divisibleBy": 2}, "s.divisibleBy"),
}

#: Other schemas that are refused: bad values, and what is only supported in part.
INVALID: list[tuple[Any, str]] = [
    ([], "s"),
    ("x", "s"),
    ({"type": "banana"}, "s.type"),
    ({"type": "dict"}, "s.type"),
    ({"type": []}, "s.type"),
    ({"anyOf": [{"type": 5}]}, "s.anyOf.0.type"),
    ({"enum": []}, "s.enum"),
    ({"enum": ["\u0001"]}, "s.enum"),
    ({"const": 2**53 + 1}, "s.const"),
    ({"const": 1 / 3}, "s.const"),
    ({"const": "\ud800"}, "s.const"),
    ({"minimum": "3"}, "s.minimum"),
    ({"minimum": 10**400}, "s.minimum"),
    ({"maximum": -1e300}, "s.maximum"),
    ({"multipleOf": 0}, "s.multipleOf"),
    ({"minLength": -1}, "s.minLength"),
    ({"minLength": "2"}, "s.minLength"),
    ({"maxItems": 1.5}, "s.maxItems"),
    ({"maxItems": float("inf")}, "s.maxItems"),
    ({"pattern": "["}, "s.pattern"),
    ({"pattern": "(?=a)"}, "s.pattern"),
    ({"pattern": "^(?=a)a|b"}, "s.pattern"),
    ({"pattern": "^(?!a)b"}, "s.pattern"),
    ({"pattern": "^(?=a"}, "s.pattern"),
    ({"pattern": "(?i)a"}, "s.pattern"),
    ({"pattern": r"(a)\1"}, "s.pattern"),
    ({"pattern": r"\bfoo"}, "s.pattern"),
    ({"pattern": "[[:alpha:]]"}, "s.pattern"),
    ({"pattern": "[a&&b]"}, "s.pattern"),
    ({"pattern": "a++"}, "s.pattern"),
    ({"pattern": "a{,3}"}, "s.pattern"),
    ({"patternProperties": {"(": 1}}, "s.patternProperties.("),
    ({"format": "regex"}, "s.format"),
    ({"not": {"minLength": 3}}, "s.not"),
    ({"not": {"type": "integer"}}, "s.not"),
    ({"not": {"required": ["a", "b"]}}, "s.not"),
    ({"not": {"type": 5}}, "s.not.type"),
    ({"propertyNames": {"pattern": "a", "minLength": 2}}, "s.propertyNames"),
    ({"propertyNames": {"pattern": "a"}, "properties": {"a": {}}}, "s.propertyNames"),
    ({"propertyNames": {"not": {"const": "a"}}}, "s.propertyNames.not"),
    ({"propertyNames": {"pattern": "(?=a)"}}, "s.propertyNames.pattern"),
    ({"propertyNames": {"format": "uuid"}}, "s.propertyNames"),
    ({"dependentRequired": {"a": "b"}}, "s.dependentRequired"),
    ({"unevaluatedProperties": False, "allOf": [{}]}, "s.unevaluatedProperties"),
    ({"unevaluatedItems": False, "$ref": "#"}, "s.unevaluatedItems"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "s.oneOf"),
    ({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}}] * 2}, "s.oneOf"),
    ({"$dynamicRef": "#a"}, "s.$dynamicRef"),
    ({"$ref": "#/$defs/x"}, "s.$ref"),
    ({"$ref": "#nowhere"}, "s.$ref"),
    ({"properties": {"a": {"$id": "http://x", "$ref": "#/b"}}}, "s.properties.a.$ref"),
    ({"minimum": 1e300}, "s.minimum"),
    ({"maximum": True}, "s.maximum"),
    ({"format": 5}, "s.format"),
    ({"items": 5}, "s.items"),
    ({"properties": []}, "s.properties"),
    ({"properties": {"a": 1}}, "s.properties.a"),
    ({"required": "a"}, "s.required"),
    ({"minProperties": 2}, "s.minProperties"),
    ({"properties": {"a": {}, "b": {}, "c": {}}, "maxProperties": 2}, "s.maxProperties"),
    ({"anyOf": []}, "s.anyOf"),
    ({"$ref": "http://x/y"}, "s.$ref"),
    ({"$schema": "http://x/y"}, "s"),
    (DEEP, "s" + ".items" * 64),
]


@pytest.mark.parametrize(("keyword", "schema"), [(k, s) for k, rows in ENFORCED.items() for s in rows])
def test_g1_every_document_of_an_accepted_schema_is_valid(keyword: str, schema: Any) -> None:
    grammar = grammar_for(guided_json=schema)
    texts = [text for seed in range(25) if (text := walk(grammar, seed)) is not None]
    assert len(texts) >= 5
    for text in texts:
        check(schema, text)


@pytest.mark.parametrize("keyword", REFUSED)
def test_g25_what_is_not_enforced_is_refused_by_name_and_path(keyword: str) -> None:
    schema, path = REFUSED[keyword]
    with pytest.raises(InvalidRequest, match=re.escape(f"`{keyword}`")) as caught:
        prepare(schema, "s")
    assert caught.value.param == path and path in caught.value.message


@pytest.mark.parametrize(("schema", "path"), INVALID, ids=lambda value: str(value)[:60])
def test_invalid_schemas_are_refused_where_they_are_wrong(schema: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare(schema, "s")
    assert caught.value.param == path or caught.value.param == f"{path}.{path}"


def test_the_table_of_the_documents_is_the_one_that_is_tested() -> None:
    rows = dict(re.findall(r"^\| `([^`]+)` \| (yes|no)", DOCS.read_text(), re.MULTILINE))
    assert {k for k, v in rows.items() if v == "yes"} == ENFORCED.keys()
    assert {k for k, v in rows.items() if v == "no"} == REFUSED.keys()
    assert set(UNSUPPORTED) <= REFUSED.keys()


def test_values_that_ask_for_nothing_are_accepted() -> None:
    schema = {
        "not": False, "uniqueItems": False, "nullable": False, "unevaluatedProperties": True, "then": {"type": "null"},
        "propertyNames": {}, "dependentRequired": {}, "title": "x", "default": 3, "x-order": 1, "$id": "http://x",
        "exclusiveMinimum": False, "additionalItems": False, "minContains": 2, "type": "integer", "format": "phone",
        "contentEncoding": "base64", "contentMediaType": "text/html", "contentSchema": {"type": "null"}, "xml": {},
        "externalDocs": {"url": "http://x"}, "markdownDescription": "x", "enumDescriptions": ["x"], "~standard": {},
        "discriminator": {"propertyName": "x"}, "$comment": "x", "deprecated": True, "definitions": {"a": {"if": 1}},
    }  # fmt: skip
    assert prepare(schema, "s") == {"type": "integer"}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"format": "date", "type": "string"}, ["2024-02-29", "2000-02-29", "1999-12-31"],
         ["2023-02-29", "1900-02-29", "2023-04-31", "2023-00-01", "0000-01-01"]),
        ({"format": "date-time", "type": "string"}, ["2024-02-29T23:59:59Z", "2024-01-01T00:00:00.5+05:30"],
         ["2024-01-01T24:00:00Z", "2024-01-01T12:59:60Z", "2024-01-01T12:00:00", "2024-01-01 12:00:00Z"]),
        ({"format": "hostname", "type": "string"}, ["a.b"], [".".join(["a" * 60] * 5), "-a"]),
    ],
)  # fmt: skip
def test_formats_admit_what_exists(schema: Any, good: list[str], bad: list[str]) -> None:
    grammar = grammar_for(guided_json=schema)
    assert [accepts(grammar, json.dumps(text)) for text in good + bad] == [True] * len(good) + [False] * len(bad)


def test_no_key_hides_behind_an_escape() -> None:
    grammar = grammar_for(guided_json={"type": "object", "properties": {"a": {"type": "integer"}}})
    assert accepts(grammar, '{"a": 1}') and accepts(grammar, '{"b\\n": "x"}')
    assert not accepts(grammar, '{"\\u0061": "x"}') and not accepts(grammar, '{"a": 1, "a": "x"}')


def test_g6_white_space_is_bounded_and_can_be_chosen() -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "null"}}}
    default = grammar_for(guided_json=schema)
    assert accepts(default, '{\n  "a": null\n}') and not accepts(default, "{" + " " * 65 + '"a": null}')
    chosen = grammar_for(guided_json=schema, guided_whitespace_pattern=r"[\n ]?")
    assert accepts(chosen, '{ "a": null}') and not accepts(chosen, '{  "a": null}')
    none = grammar_for(structured_outputs={"json": schema, "disable_any_whitespace": True})
    assert accepts(none, '{"a":null}') and not accepts(none, '{"a": null}')


def test_additional_properties_can_be_switched_off() -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    grammar = grammar_for(structured_outputs={"json": schema, "disable_additional_properties": True})
    assert accepts(grammar, '{"a": {}}')
    assert not accepts(grammar, '{"b": 1}') and not accepts(grammar, '{"a": {"b": 1}}')


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "format": "int64"}, ["9223372036854775807", "-9223372036854774784"],
         ["9223372036854775808", "-9223372036854775809"]),
        ({"type": "integer", "minimum": -9223372036854775808, "maximum": 18446744073709551615},
         ["0", "9223372036854775807"], ["-9223372036854775809", "18446744073709551616"]),
        ({"type": "number", "minimum": -1e308, "maximum": 1e308}, ["0.5", "-9200000000000000000"], ["1e309"]),
        ({"type": "number", "minimum": 0.12345678901234567}, ["0.123456789012346"], ["0.12345678901234566"]),
        ({"type": "number", "exclusiveMinimum": 1e-12}, ["0.000000001"], ["0", "0.0000000000001"]),
        ({"type": "integer", "exclusiveMinimum": 2**53}, ["9007199254741000"], ["9007199254740992"]),
        ({"type": "number", "maximum": 2**60}, ["1152921504606840000"], ["1152921504606846977"]),
        ({"type": "integer", "format": "uint8"}, ["0", "255"], ["-1", "256"]),
        ({"minimum": 3, "exclusiveMinimum": True}, ["4"], ["3"]),
        ({"type": "string", "format": "int64"}, ['"x"'], ["5"]),
    ],
)  # fmt: skip
def test_bounds_are_never_loosened(schema: Any, good: list[str], bad: list[str]) -> None:
    grammar = grammar_for(guided_json=schema)
    assert [accepts(grammar, text) for text in good + bad] == [True] * len(good) + [False] * len(bad)


def test_a_discriminator_tells_alternatives_apart_that_have_no_constant() -> None:
    pets = {
        name: {"type": "object", "properties": {"k": {"type": "string"}}, "required": ["k"]} for name in ("Cat", "Dog")
    }
    union = {"oneOf": [{"$ref": f"#/components/schemas/{name}"} for name in pets]}
    document: Any = {"components": {"schemas": pets}, **union}
    with pytest.raises(InvalidRequest, match="alternatives 0 and 1"):
        prepare(document, "s")
    for mapping, good, bad in (
        (None, ["Cat", "Dog"], ["cat"]),
        ({"c": "#/components/schemas/Cat", "kitten": "Cat"}, ["c", "kitten", "Dog"], ["Cat"]),
    ):
        chosen = {"propertyName": "k"} | ({"mapping": mapping} if mapping else {})
        grammar = grammar_for(guided_json=document | {"discriminator": chosen})
        assert [accepts(grammar, json.dumps({"k": k})) for k in good + bad] == [True] * len(good) + [False] * len(bad)


def test_unions_of_many_alternatives_are_told_apart_in_time() -> None:
    tagged = [{"type": "object", "properties": {"k": {"const": f"v{i}"}}, "required": ["k"]} for i in range(400)]
    assert len(prepare({"oneOf": tagged}, "s")["anyOf"]) == 400
    keyed = [{"type": "object", "properties": {f"k{i}": {}}, "required": [f"k{i}"], "additionalProperties": False}
             for i in range(100)]  # fmt: skip
    assert len(prepare({"oneOf": keyed}, "s")["anyOf"]) == 100


def test_parts_of_one_object_stay_open_where_objects_are_closed() -> None:
    base = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema = {"$defs": {"base": base}, "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": {"type": "null"}}}]}
    grammar = grammar_for(structured_outputs={"json": schema, "disable_additional_properties": True})
    assert accepts(grammar, '{"a": 1, "b": null}')


@pytest.mark.parametrize("is_server", [False, True])
def test_a_setting_closes_the_objects_of_all_requests_that_do_not_say(is_server: bool) -> None:
    schema: Any = {"type": "object", "properties": {"a": {"type": "null"}}}
    limits = GrammarLimits(disable_additional_properties=is_server)
    tags = {"structures": [{"begin": "<a>", "schema": schema, "end": "</a>"}], "triggers": ["<a>"]}
    for fields in (
        {"guided_json": schema},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
        {"structured_outputs": {"json": schema}},
    ):
        grammar = grammar_of(spec_of(fields, limits))
        assert accepts(grammar, '{"b": 1}') is not is_server
    grammar = grammar_of(spec_of({"structured_outputs": {"structural_tag": tags}}, limits))
    assert accepts(grammar, '<a>{"b": 1}</a>') is not is_server
    own = {"structured_outputs": {"json": schema, "disable_additional_properties": not is_server}}
    assert accepts(grammar_of(spec_of(own, limits)), '{"b": 1}') is is_server


def test_schemas_that_nest_what_is_only_read_cost_what_they_are_long() -> None:
    chain: Any = {"type": "string"}
    for _ in range(60):
        chain = {"not": chain}
    prepare(chain, "s")
    names: Any = {"propertyNames": {"allOf": [{"$ref": "#/$defs/n"}, {"$ref": "#/$defs/n"}]}}
    prepare({"$defs": {"n": names}, "$ref": "#/$defs/n"}, "s")


def test_definitions_that_nothing_refers_to_are_not_read() -> None:
    assert prepare({"$defs": {"x": {"type": "banana"}}, "definitions": 5, "type": "null"}, "s") == {"type": "null"}


# ------------------------------------------------------------------------------------------------ random schemas
NAMES = st.sampled_from(["a", "b", "ab", "c"])
SMALL = st.one_of(
    st.sampled_from([{"type": t} for t in ("integer", "number", "string", "boolean", "null")]),
    st.builds(lambda values: {"enum": values}, st.lists(
        st.sampled_from([1, 2, "a", "b", None, True, [1], {"a": 1}, {"b": "x"}]), min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, st.sampled_from([1, "a", {"a": 1}, [1, 2], None])),
    st.sampled_from([{}, True, {"type": ["object", "null"]}, {"$ref": "#/$defs/x"}]),
    st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
              st.integers(-20, 20), st.integers(0, 30)),
    st.builds(lambda low, size: {"type": "string", "minLength": low, "maxLength": low + size},
              st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda p: {"type": "string", "pattern": p}, st.sampled_from(["^a", "b", "^[ab]{1,4}$", "a|b"])),
    st.builds(lambda m: {"type": "number", "multipleOf": m}, st.sampled_from([2, 3, 0.5])),
)  # fmt: skip


def _larger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    objects = st.fixed_dictionaries(
        {"properties": st.dictionaries(NAMES, inner, max_size=3)},
        optional={
            "type": st.just("object"),
            "required": st.lists(NAMES, max_size=2),
            "additionalProperties": st.one_of(st.booleans(), inner),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b$"]), inner, max_size=1),
            "maxProperties": st.integers(0, 3),
        },
    )
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(1, 3),
        },
    )
    combined = st.builds(
        lambda name, schemas, more: {**(more if isinstance(more, dict) else {}), name: schemas},
        st.sampled_from(["anyOf", "oneOf", "allOf"]),
        st.lists(inner, min_size=1, max_size=3),
        st.one_of(st.just({}), inner),
    )
    return st.one_of(objects, arrays, combined)  # fmt: skip


SCHEMAS = st.recursive(SMALL, _larger, max_leaves=8)


@settings(max_examples=250)
@given(schema=SCHEMAS, shared=SMALL, seed=st.integers(0, 1000))
def test_whatever_is_accepted_yields_valid_documents(schema: Any, shared: Any, seed: int) -> None:
    schema = {"allOf": [schema]} if isinstance(schema, bool) else {**schema, "$defs": {"x": shared}}
    try:
        grammar = grammar_for(guided_json=schema)
    except (InvalidRequest, Refused):
        return
    for offset in range(4):
        text = walk(grammar, seed + offset, max_tokens=200)
        if text is not None:
            check(schema, text)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(
        st.sampled_from([*ENFORCED, *REFUSED, "$defs", "$id", "discriminator", "a"]), inner, max_size=4)),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(schema=JSON)
def test_nonsense_is_refused_and_nothing_else_happens(schema: Any) -> None:
    with contextlib.suppress(InvalidRequest, Refused):
        grammar_of(spec_of({"guided_json": {} if schema is None else schema}, ANY_SIZE))
    prepare_loosely(schema, "s")


# ------------------------------------------------------------------------------------------------- real schemas
def _bfcl_schemas(path: Path) -> Iterator[Any]:
    """The parameters of every tool in the data files of the package bfcl-eval."""
    with zipfile.ZipFile(path) as wheel:
        for name in wheel.namelist():
            if not name.endswith(".json"):
                continue
            for line in wheel.read(name).decode().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                tools = row.get("function", [row]) if isinstance(row, dict) else []
                for tool in tools if isinstance(tools, list) else []:
                    if isinstance(tool, dict) and "parameters" in tool:
                        yield tool["parameters"]


def _standard_types(schema: Any) -> Any:
    """BFCL writes Python's and Java's names of types; most of them have one of JSON's."""
    names = {"dict": "object", "float": "number", "tuple": "array", "String": "string", "double": "number"}
    if isinstance(schema, list):
        return [_standard_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed = {key: _standard_types(value) for key, value in schema.items()}
    if isinstance(changed.get("type"), str):
        changed["type"] = names.get(changed["type"], changed["type"])
    return changed


def test_the_tool_definitions_of_bfcl_are_accepted_or_refused_by_name(bfcl_wheel: Path) -> None:
    counts = {"accepted": 0, "refused": 0, "not compiled": 0}
    seen: set[str] = set()
    for original in _bfcl_schemas(bfcl_wheel):
        for schema in (original, _standard_types(original)):
            key = json.dumps(schema)
            if key in seen:
                continue
            seen.add(key)
            try:
                spec = spec_of({"guided_json": schema}, GrammarLimits())
                grammar = grammar_of(spec)
            except InvalidRequest as exc:
                assert exc.param is not None and exc.param.startswith("guided_json.")
                counts["refused"] += 1
                continue
            except Refused:
                counts["not compiled"] += 1
                continue
            counts["accepted"] += 1
            if counts["accepted"] % 20 == 0 and (text := walk(grammar, counts["accepted"], 200)) is not None:
                check(schema, text)
    assert counts["accepted"] > 1000 and counts["refused"] > 1000, counts
    assert counts["not compiled"] * 100 < counts["accepted"], counts
