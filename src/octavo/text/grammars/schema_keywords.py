"""What JSON Schema's keywords may say here: names, values, and numbers that the grammar engine holds exactly.

A bound is never loosened: one that the grammar engine, which computes with doubles, would not hold to the digit is
moved to the next number that it does hold, towards the inside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, Final

from octavo.base.errors import InvalidRequest

TYPES: Final = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
#: Keywords that no grammar here enforces. All that are neither here nor read by `json_schema` are annotations, or
#: unknown, which is the same to JSON Schema.
UNSUPPORTED: Final = ("if", "contains", "x-guidance", "extends", "disallow", "divisibleBy")
#: Formats of numbers in OpenAPI and in schemas that programs make: their bounds. `float` and `double` have none.
NUMBER_FORMATS: Final[dict[str, tuple[int, int]]] = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64, 128)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64, 128)},
    "int": (-(2**63), 2**63 - 1),
    "uint": (0, 2**64 - 1),
}

#: Integers beyond it are not exact as doubles.
_MAX_EXACT: Final = 2**53
_MIN_SCALE: Final = 1e-9
_MAX_DIGITS: Final = 15
#: Bounds that the engine can write. Of integers it knows all of 64 bits but the lowest 1024: as doubles the ends are
#: 2**63, which it takes for 2**63 - 1, and the number below.
_LARGEST_BOUND: Final = Decimal(9_200_000_000_000_000_000)
_INT64_ENDS: Final = (1024 - 2**63, 2**63)
_BOUND: Final = {
    "minimum": Context(prec=_MAX_DIGITS, rounding=ROUND_CEILING),
    "maximum": Context(prec=_MAX_DIGITS, rounding=ROUND_FLOOR),
}
_QUANTUM: Final = Decimal("1e-9")
#: Characters that cannot be written without a \\u escape, and half characters.
_UNWRITABLE: Final = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\ud800-\udfff]")


def refused(keyword: str, path: str, what: str = "") -> InvalidRequest:
    """`what` of the keyword at `path` cannot be enforced."""
    where = f"{path}.{keyword}"
    return InvalidRequest(
        f"The schema's `{keyword}`{' ' + what if what else ''} cannot be enforced, at {where}.", where
    )


def invalid(keyword: str, path: str, problem: str) -> InvalidRequest:
    where = f"{path}.{keyword}"
    return InvalidRequest(f"The schema's `{keyword}` {problem}, at {where}.", where)


def check_text(text: str, keyword: str, path: str) -> None:
    if _UNWRITABLE.search(text):
        raise refused(keyword, path, "with control characters or unpaired surrogates")


def checked_count(value: Any, keyword: str, path: str) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    whole = whole or (isinstance(value, float) and value.is_integer())
    if not whole or not 0 <= value <= _MAX_EXACT:
        raise invalid(keyword, path, "should be a whole number, not negative")
    return int(value)


def _check_is_number(value: Any, keyword: str, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(keyword, path, "should be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(keyword, path, "should be a finite number")


def check_number(value: Any, keyword: str, path: str) -> None:
    """A number that must be held as it is."""
    _check_is_number(value, keyword, path)
    exact = abs(value) <= _MAX_EXACT and (value == 0 or abs(value) >= _MIN_SCALE)
    if not exact or (isinstance(value, float) and float(f"{value:.{_MAX_DIGITS}g}") != value):
        raise refused(keyword, path, f"with a number of more than {_MAX_DIGITS} digits")


def check_value(value: Any, keyword: str, path: str) -> None:
    """A value of `enum` or `const`: at most as deep as a request's JSON may be."""
    if isinstance(value, str):
        check_text(value, keyword, path)
    elif isinstance(value, dict):
        for key, member in value.items():
            check_text(key, keyword, path)
            check_value(member, keyword, path)
    elif isinstance(value, list):
        for member in value:
            check_value(member, keyword, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        check_number(value, keyword, path)


def inward(value: Any, side: str, keyword: str, path: str, *, exclusive: bool, of_integers: bool) -> tuple[Any, bool]:
    """The bound that stands for `value`, and whether it is exclusive.

    `side`: "minimum" or "maximum". `of_integers`: only integers are bounded. Raises `InvalidRequest` for what is no
    number, and for a bound beyond which nothing can be written.
    """
    _check_is_number(value, keyword, path)
    if abs(value) < _MAX_EXACT and _is_exact(value):  # the number next to it is exact too
        return value, exclusive
    context, exact = _BOUND[side], Decimal(value)
    is_minimum = side == "minimum"
    end = _INT64_ENDS[0 if is_minimum else 1]
    if of_integers and (exact <= end if is_minimum else exact >= end - 1):
        return end, False
    if exact > _LARGEST_BOUND if is_minimum else exact < -_LARGEST_BOUND:
        raise refused(keyword, path, "beyond the largest numbers that are written")
    rounded = context.plus(exact)
    if exclusive and rounded == exact:
        rounded = context.next_plus(exact) if is_minimum else context.next_minus(exact)
    rounded = min(max(rounded, -_LARGEST_BOUND), _LARGEST_BOUND)
    if abs(rounded) < _QUANTUM:
        rounded = rounded.quantize(_QUANTUM, context.rounding)
    whole = int(rounded)
    return (whole if whole == rounded else float(rounded)), False


def _is_exact(value: int | float) -> bool:
    """The engine holds it to the digit."""
    if value != 0 and abs(value) < _MIN_SCALE:
        return False
    return isinstance(value, int) or float(f"{value:.{_MAX_DIGITS}g}") == value


def bounds(schema: Mapping[str, Any], side: str, path: str) -> dict[str, Any]:
    """The keywords that bound numbers on one side, "minimum" or "maximum": those of all drafts and of `format`."""
    exclusive = "exclusive" + side.capitalize()
    types = schema.get("type")
    types = types if isinstance(types, list) else [types]
    of_integers = "integer" in types and "number" not in types
    found = [(schema[side], schema.get(exclusive) is True, side)] if side in schema else []
    if exclusive in schema and not isinstance(schema[exclusive], bool):  # in draft 4 a switch of the other
        found.append((schema[exclusive], True, exclusive))
    text_format = schema.get("format")
    if isinstance(text_format, str) and text_format in NUMBER_FORMATS and types != ["string"]:
        found.append((NUMBER_FORMATS[text_format][side == "maximum"], False, "format"))
    held = [
        inward(value, side, keyword, path, exclusive=is_exclusive, of_integers=of_integers)
        for value, is_exclusive, keyword in found
    ]
    tightest = max if side == "minimum" else min
    sorted_out = {
        name: [value for value, is_exclusive in held if is_exclusive is wanted]
        for name, wanted in ((side, False), (exclusive, True))
    }
    return {name: tightest(values) for name, values in sorted_out.items() if values}
