"""The questions of BFCL v4 (Berkeley Function Calling Leaderboard), read from the wheel of `bfcl-eval` as data."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CATEGORIES = (
    "simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple", "live_multiple",
)  # fmt: skip
#: Those whose answer is one call.
SINGLE_CALL = frozenset({"simple_python", "multiple", "live_simple", "live_multiple"})
#: BFCL's names of types -> JSON Schema's; None: any type.
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}

#: Function -> parameter -> the values that are right; "" among them: the parameter may be left out.
Answer = Mapping[str, Mapping[str, list[Any]]]


@dataclass(frozen=True)
class Question:
    """`answer`: the calls that are right, none of them in the category `irrelevance`."""

    id: str
    category: str
    messages: list[dict[str, str]]
    functions: dict[str, dict[str, Any]]  # by the name that the model sees -> BFCL's own schema of its parameters
    tools: list[dict[str, Any]]  # as OpenAI's API takes them
    answer: list[Answer]


def load(wheel: Path, category: str, limit: int | None) -> list[Question]:
    """`limit` questions at even distances over the category."""
    with zipfile.ZipFile(wheel) as archive:
        lines = list(_lines(archive, f"bfcl_eval/data/BFCL_v4_{category}.json"))
        answers = {}
        if category != "irrelevance":
            name = f"bfcl_eval/data/possible_answer/BFCL_v4_{category}.json"
            answers = {entry["id"]: entry["ground_truth"] for entry in _lines(archive, name)}
    count = len(lines) if limit is None else min(limit, len(lines))
    chosen = [lines[i * len(lines) // count] for i in range(count)]
    return [_question(entry, category, answers.get(entry["id"], [])) for entry in chosen]


def _lines(archive: zipfile.ZipFile, name: str) -> Iterator[Any]:
    return map(json.loads, archive.read(name).decode().splitlines())


def _question(entry: Mapping[str, Any], category: str, truth: list[Answer]) -> Question:
    functions, tools = {}, []
    for function in entry["function"]:
        name = api_name(function["name"])
        functions[name] = function["parameters"]
        shown = {"name": name, "description": function["description"], "parameters": schema(function["parameters"])}
        tools.append({"type": "function", "function": shown})
    answer = [{api_name(name): values for name, values in call.items()} for call in truth]
    return Question(entry["id"], category, entry["question"][0], functions, tools, answer)


def api_name(name: str) -> str:
    """OpenAI's API has no dots in names."""
    return name.replace(".", "_")


def schema(own: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of a schema with BFCL's names of types."""
    result: dict[str, Any] = {}
    for key, value in own.items():
        if key == "type":
            name = _TYPES.get(value, value)
            if name is not None:
                result[key] = name
        elif key == "properties":
            result[key] = {name: schema(part) for name, part in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            result[key] = schema(value)
        else:
            result[key] = value
    return result
