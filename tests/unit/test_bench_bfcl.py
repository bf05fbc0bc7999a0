"""The checker of bench/bfcl.py: BFCL's rules, case by case, and its own answers, all of which are right."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[2] / "bench"
PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "scale": {"type": "float"},
    "dry": {"type": "boolean"},
    "tags": {"type": "array", "items": {"type": "string"}},
    "place": {"type": "dict", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}},
    "stops": {"type": "array", "items": {"type": "dict"}},
}
POSSIBLE = {
    "city": ["New York", "NYC"],
    "days": [3],
    "scale": [1.5, 2.0, ""],
    "dry": [True, ""],
    "tags": [["a", "B b"], ""],
    "place": [{"x": [1], "y": [2, ""]}, ""],
    "stops": [[{"at": ["Oslo"]}, {"at": ["Rome", ""]}], ""],
}
GOOD = {"city": "new-york", "days": 3}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(BENCH))
    try:
        yield importlib.import_module("bfcl_score"), importlib.import_module("bfcl_data")
    finally:
        sys.path.remove(str(BENCH))


def mistake(bench: Any, calls: list[Any], answers: list[Any] | None = None) -> str:
    score, data = bench
    functions = {name: {"properties": PROPERTIES, "required": ["city"]} for name in ("f", "g")}
    answer = [{"f": POSSIBLE}] if answers is None else answers
    found: str = score.mistake(data.Question("q", "c", [], functions, [], answer), calls)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"city": "NEW YORK"}, {"city": "nyc"}, {"scale": 1.5}, {"scale": 2}, {"dry": True}, {"tags": ["A", "bb"]},
        {"place": {"x": 1}}, {"place": {"x": 1, "y": 2}}, {"stops": [{"at": "oslo"}, {}]},
        {"stops": [{"at": "Oslo"}, {"at": "Rome"}]},
    ],
)  # fmt: skip
def test_what_is_right(bench: Any, changes: dict[str, Any]) -> None:
    assert mistake(bench, [("f", GOOD | changes)]) == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"city": "Boston"}, {"city": 3}, {"days": 4}, {"days": "3"}, {"days": True}, {"days": 3.5}, {"scale": True},
        {"scale": 3}, {"dry": False}, {"dry": 1}, {"tags": ["a"]}, {"tags": ["B b", "a"]}, {"tags": "a"},
        {"place": {"x": 2}}, {"place": {"y": 2}}, {"place": {"x": 1, "z": 0}}, {"stops": [{"at": "Oslo"}]},
        {"stops": [{"at": "Rome"}, {"at": "Oslo"}]}, {"more": 1},
    ],
)  # fmt: skip
def test_what_is_wrong(bench: Any, changes: dict[str, Any]) -> None:
    assert mistake(bench, [("f", GOOD | changes)])


def test_names_counts_and_missing_parameters(bench: Any) -> None:
    assert mistake(bench, [("g", GOOD)]) and mistake(bench, []) and mistake(bench, [("f", GOOD)] * 2)
    assert mistake(bench, [("f", {"city": "NYC"})]) == "days is missing"
    assert mistake(bench, [("f", ["city"])])
    assert mistake(bench, [], []) == "" and mistake(bench, [("f", {})], [])


def test_parallel_calls_come_in_any_order(bench: Any) -> None:
    answers = [{"f": {"city": ["Oslo"]}}, {"f": {"city": ["Rome"]}}, {"g": {"city": ["Rome"]}}]
    calls = [("g", {"city": "Rome"}), ("f", {"city": "Rome"}), ("f", {"city": "Oslo"})]
    assert mistake(bench, calls, answers) == ""
    assert mistake(bench, [calls[0], calls[1], calls[1]], answers)


def test_the_answers_of_bfcl_are_right_in_their_own_eyes(bench: Any, bfcl_wheel: Path) -> None:
    score, data = bench
    refused = total = 0
    for category in data.CATEGORIES:
        for question in data.load(bfcl_wheel, category, None):
            calls = [(name, _first(values)) for call in question.answer for name, values in call.items()]
            total += 1
            refused += bool(score.mistake(question, calls))
    assert total > 2500 and refused <= 0.01 * total, (refused, total)


def _first(values: dict[str, Any]) -> dict[str, Any]:
    """The first possible value of each parameter that has to be there."""
    return {key: _plain(choices[0]) for key, choices in values.items() if choices and "" not in choices}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(choices[0]) if isinstance(choices, list) else choices for key, choices in value.items()
                if not isinstance(choices, list) or "" not in choices}  # fmt: skip
    return [_plain(item) for item in value] if isinstance(value, list) else value
