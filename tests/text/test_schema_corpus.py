"""Schemas as generators, MCP servers and OpenAPI documents write them: which are held, and held in full."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from octavo.base.errors import InvalidRequest
from octavo.text.formats.base import Tool
from octavo.text.grammars.grammar import GrammarLimits
from octavo.text.grammars.held_tools import prepared_tools
from octavo.text.grammars.json_schema import prepare_loosely
from support.grammar_walk import accepts, grammar_for, walk
from support.schema_checks import check, validator_of

FILES = sorted((Path(__file__).parent / "schemas").glob("*.json"))
SCHEMAS: dict[str, Any] = {name: schema for path in FILES for name, schema in json.loads(path.read_text()).items()}

#: What is refused, and the place of the keyword that nothing enforces.
REFUSED = {
    "pydantic/set": "properties.tags.uniqueItems",
    "zod3/set": "properties.s.uniqueItems",
    "schemars/set": "uniqueItems",
    "draft2020/contains": "contains",
    "sqlite/create_table": "properties.name.pattern",
    "search/regex": "properties.pattern.format",
    "validate/if_then": "if",
    "kubernetes/json_schema_props": "properties.set.uniqueItems",
    "slack/unique": "uniqueItems",
    "openapi30/overlapping": "oneOf",
}
HELD = sorted(SCHEMAS.keys() - REFUSED.keys())


def test_how_many_are_held() -> None:
    assert (len(SCHEMAS), len(HELD), len(REFUSED)) == (103, 93, 10)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named_and_a_loose_tool_loses_that_keyword_alone(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        grammar_for(guided_json=SCHEMAS[name])
    assert caught.value.param == f"guided_json.{REFUSED[name]}"
    loose = prepare_loosely(SCHEMAS[name], "s")
    assert f"s.{REFUSED[name]}" in [left_out.param for left_out in loose.dropped]
    grammar = grammar_for(guided_json=loose.schema)
    assert any(walk(grammar, seed) is not None for seed in range(10))


def _mutated(value: Any, rng: random.Random) -> Any:
    """`value` with one thing changed, at any depth: a member gone, renamed, added, or of another type."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        action = rng.randrange(4)
        if action == 0:
            return {k: v for k, v in value.items() if k != key}
        if action == 1:
            return {(f"{k}x" if k == key else k): v for k, v in value.items()}
        if action == 2:
            return {**value, "zz": rng.choice([1, "a", None])}
        return {k: (_mutated(v, rng) if k == key else v) for k, v in value.items()}
    if isinstance(value, list) and value and rng.random() < 0.8:
        i = rng.randrange(len(value))
        return rng.choice(
            [value[:i] + value[i + 1 :], [*value, value[i]], [*value[:i], _mutated(value[i], rng), *value[i + 1 :]]]
        )
    return rng.choice([None, True, 0, -1, 7, 1.5, 10**10, "", "a", "A1", "2024-02-30", {}, [], ["a"], {"a": 1}])


@pytest.mark.parametrize("name", HELD)
def test_what_is_held_is_held_in_full(name: str) -> None:
    """What the grammar writes is valid, and of documents that are nearly so it accepts none that are not."""
    schema = SCHEMAS[name]
    grammar = grammar_for(guided_json=schema)
    validator = validator_of(schema)
    rng = random.Random(name)
    texts = [text for seed in range(8) if (text := walk(grammar, seed, 300)) is not None]
    assert texts
    for text in texts:
        check(schema, text)
        for _ in range(12):
            changed = json.dumps(_mutated(json.loads(text), rng), ensure_ascii=False)
            if accepts(grammar, changed):
                assert validator.is_valid(json.loads(changed, parse_float=Decimal)), changed


def test_every_schema_of_the_corpora_can_be_a_loose_tool() -> None:
    tools = [Tool(f"f{i}", SCHEMAS[name]) for i, name in enumerate(SCHEMAS)]
    paths = [f"tools.{i}" for i in range(len(tools))]
    prepared = prepared_tools(tools, paths, GrammarLimits(), loose={tool.name for tool in tools})
    assert len(prepared) == len(tools)
    assert all(tool.parameters["type"] == "object" for tool in prepared)
    for tool in prepared[::7]:
        grammar_for(guided_json=tool.parameters)
