"""Whether calls are right, by the rules that BFCL publishes for comparing them with its possible answers.

A call is right if its function is the expected one, all required parameters are there, none is unknown, and each value
has the type that its schema names and is among the possible ones. Strings are compared without case, blanks and some
punctuation. A parameter may be left out if "" is among its values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bfcl_data import Answer, Question

#: (function, arguments)
Call = tuple[str, Any]

_IGNORED = re.compile(r"[ ,./\-_*^]")
_CLASSES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float, int),  # a whole number is written without a point in JSON
    "number": (float, int),
    "boolean": (bool,),
    "array": (list,),
    "tuple": (list,),
    "dict": (dict,),
    "object": (dict,),
}


def mistake(question: Question, calls: Sequence[Call]) -> str:
    """What is wrong with the calls; "" if they are right."""
    if not question.answer:
        return "a call where none was due" if calls else ""
    if len(calls) != len(question.answer):
        return f"{len(calls)} calls instead of {len(question.answer)}"
    left, found = list(calls), ""
    for expected in question.answer:
        reasons = [wrong_call(question, expected, call) for call in left]
        if "" not in reasons:
            return found or reasons[0]
        left.pop(reasons.index(""))
    return ""


def wrong_call(question: Question, expected: Answer, call: Call) -> str:
    """Why `call` is not the expected one; "" if it is."""
    [(name, possible)] = expected.items()
    function, arguments = call
    if function != name:
        return f"{function} instead of {name}"
    if not isinstance(arguments, dict):
        return "arguments that are no object"
    own = question.functions[name]
    for key in own.get("required", []):
        if key not in arguments:
            return f"{key} is missing"
    for key, value in arguments.items():
        if key not in possible or key not in own["properties"]:
            return f"{key} is not expected"
        if not _is_right(value, own["properties"][key], possible[key]):
            return f"{key} is {value!r} instead of one of {possible[key]!r}"
    for key, values in possible.items():
        if key not in arguments and "" not in values:
            return f"{key} is missing"
    return ""


def _is_right(value: Any, schema: Mapping[str, Any], possible: Sequence[Any]) -> bool:
    if not _has_type(value, schema):
        # The expected value may be of another type itself, such as the name of a variable.
        return any(type(value) is type(one) and _same(value, one) for one in possible)
    if isinstance(value, dict):
        return any(isinstance(one, dict) and _same_members(value, one) for one in possible)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return any(isinstance(one, list) and _same_objects(value, one) for one in possible)
    return any(_same(value, one) for one in possible)


def _has_type(value: Any, schema: Mapping[str, Any]) -> bool:
    classes = _CLASSES.get(schema["type"])
    if classes is None:
        return True
    if not isinstance(value, classes) or (isinstance(value, bool) and bool not in classes):
        return False
    items = schema.get("items")
    return not (isinstance(value, list) and isinstance(items, Mapping) and "type" in items) or all(
        _has_type(item, items) for item in value
    )


def _same(value: Any, one: Any) -> bool:
    return _plain(value) == _plain(one) and isinstance(value, bool) == isinstance(one, bool)


def _plain(value: Any) -> Any:
    """A value, and all strings within, as they are compared."""
    if isinstance(value, str):
        return _IGNORED.sub("", value).lower().replace("'", '"')
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _same_members(value: Mapping[str, Any], possible: Mapping[str, list[Any]]) -> bool:
    """In an object that is expected each member has a list of possible values, as parameters have."""
    for key, item in value.items():
        if key not in possible or not any(_same(item, one) for one in _choices(possible[key])):
            return False
    return all(key in value or "" in _choices(choices) for key, choices in possible.items())


def _choices(possible: Any) -> list[Any]:
    return possible if isinstance(possible, list) else [possible]


def _same_objects(values: Sequence[Any], possible: Sequence[Any]) -> bool:
    return len(values) == len(possible) and all(
        isinstance(value, dict) and isinstance(one, dict) and _same_members(value, one)
        for value, one in zip(values, possible, strict=True)
    )
