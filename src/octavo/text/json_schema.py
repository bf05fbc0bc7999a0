"""A JSON schema is honoured in full or refused, never weakened in silence (features.md U3).

`prepare` walks a schema and writes a new one that has only keywords which the grammar engine enforces exactly. What it
cannot enforce is an `InvalidRequest` naming the keyword and its path. Where the engine is known to be loose, the new
schema says the same by other means: dates become patterns, tuples `prefixItems`.

"Exactly" has one direction: every finished text is a valid document. The engine may be stricter than the schema: keys
come in the order of `properties`, integers are written without a fraction, dates have the years 1000 to 9999.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

from octavo.errors import InvalidRequest
from octavo.text.schema_regex import ENGINE_FORMATS, FORMAT_PATTERNS, NUMBER_FORMATS, problem_of

_TYPES: Final = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
#: Without effect on what is valid; dropped.
ANNOTATIONS: Final = frozenset(
    [
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$comment",
        "$id",
        "id",
        "$schema",
        "$vocabulary",
    ]
)
#: Keywords that no grammar here enforces, with a test for values that ask for nothing.
UNSUPPORTED: Final[dict[str, Callable[[Any], bool]]] = {
    "not": lambda value: value is False,
    "if": lambda value: False,
    "contains": lambda value: False,
    "propertyNames": lambda value: value is True or value == {},
    "dependentRequired": lambda value: value == {},
    "dependentSchemas": lambda value: value == {},
    "dependencies": lambda value: value == {},
    "unevaluatedItems": lambda value: value is True,
    "unevaluatedProperties": lambda value: value is True,
    "$dynamicRef": lambda value: False,
    "$recursiveRef": lambda value: False,
    "contentEncoding": lambda value: False,
    "contentMediaType": lambda value: False,
    "contentSchema": lambda value: False,
    "nullable": lambda value: value is False,
    "x-guidance": lambda value: False,
    "extends": lambda value: False,
    "disallow": lambda value: False,
    "divisibleBy": lambda value: False,
}
_DRAFT: Final = re.compile(r"https?://json-schema\.org/(?:draft-0[4567]|draft/20(?:19-09|20-12))/schema#?")
_ANCHOR: Final = re.compile(r"[A-Za-z_][-A-Za-z0-9._]*")
#: Numbers beyond it are not exact in the engine, which computes with doubles.
_MAX_NUMBER: Final = 2**53
_MIN_SCALE: Final = 1e-9
_MAX_DIGITS: Final = 15
#: Characters that cannot be written without a \\u escape, and half characters.
_UNWRITABLE: Final = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\ud800-\udfff]")


def prepare(schema: Any, param: str, *, max_depth: int = 64, disable_additional: bool = False) -> Any:
    """The schema for the grammar engine. `param` is the request's field, the beginning of the paths in errors.

    `disable_additional`: objects with `properties` get no other keys than those, where the schema leaves it open.
    """
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("A JSON schema should be an object or a boolean.", param)
    draft = schema.get("$schema") if isinstance(schema, dict) else None
    if draft is not None and not (isinstance(draft, str) and _DRAFT.fullmatch(draft)):
        raise InvalidRequest(f"`$schema` should be one of JSON Schema's drafts 4 to 2020-12, at {param}.", param)
    try:
        return _Walk(max_depth, disable_additional).schema(schema, param, 0)
    except RecursionError:  # a value of `enum` or `const` may be deeper than the schema
        raise InvalidRequest("The schema is nested too deeply.", param) from None


class _Walk:
    def __init__(self, max_depth: int, disable_additional: bool) -> None:
        self._max_depth = max_depth
        self._disable_additional = disable_additional

    def schema(self, schema: Any, path: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            raise InvalidRequest(f"A schema should be an object or a boolean, at {path}.", path)
        if depth >= self._max_depth:
            raise InvalidRequest(f"The schema is nested deeper than {self._max_depth} levels, at {path}.", path)
        for name in schema:
            if name in UNSUPPORTED and not UNSUPPORTED[name](schema[name]):
                raise _refused(name, path)
        if depth and isinstance(schema.get("$id"), str):
            raise _refused("$id", path, "below the root")
        out: dict[str, Any] = {}
        self._any_type(schema, out, path)
        self._numbers(schema, out, path)
        self._strings(schema, out, path)
        self._arrays(schema, out, path, depth)
        self._objects(schema, out, path, depth)
        self._combined(schema, out, path, depth)
        return out

    # ------------------------------------------------------------------------------------------------- any type
    def _any_type(self, schema: dict[str, Any], out: dict[str, Any], path: str) -> None:
        if "type" in schema:
            value = schema["type"]
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
                raise _invalid("type", path, "should be the name of a type or a list of names")
            for name in names:
                if name not in _TYPES:
                    raise _invalid("type", path, f"names the unknown type {name[:40]!r}")
            out["type"] = value
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise _invalid("enum", path, "should be a list of at least one value")
            for value in values:
                _check_value(value, "enum", path)
            out["enum"] = values
        if "const" in schema:
            _check_value(schema["const"], "const", path)
            out["const"] = schema["const"]
        if "$ref" in schema:
            ref = schema["$ref"]
            if not isinstance(ref, str) or not ref.startswith("#"):
                raise _refused("$ref", path, "to another document")
            out["$ref"] = ref
        if "$anchor" in schema:
            if not isinstance(schema["$anchor"], str) or not _ANCHOR.fullmatch(schema["$anchor"]):
                raise _invalid("$anchor", path, "should be a name")
            out["$anchor"] = schema["$anchor"]

    # ------------------------------------------------------------------------------------------------- scalars
    def _numbers(self, schema: dict[str, Any], out: dict[str, Any], path: str) -> None:
        for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
            if name in schema and not isinstance(schema[name], bool):
                _check_number(schema[name], name, path)
                out[name] = schema[name]
        for name, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if schema.get(name) is True and bound in out:  # draft 4: a switch
                out[name] = out.pop(bound)
        if out.get("multipleOf", 1) <= 0:
            raise _invalid("multipleOf", path, "should be greater than 0")
        text_format = schema.get("format")
        bounds = NUMBER_FORMATS.get(text_format) if isinstance(text_format, str) else None
        if bounds is not None:
            _add(out, {"minimum": bounds[0], "maximum": bounds[1]})

    def _strings(self, schema: dict[str, Any], out: dict[str, Any], path: str) -> None:
        _copy_counts(schema, out, ("minLength", "maxLength"), path)
        if "pattern" in schema:
            _check_pattern(schema["pattern"], "pattern", path)
            out["pattern"] = schema["pattern"]
        if "format" not in schema:
            return
        name = schema["format"]
        if not isinstance(name, str):
            raise _invalid("format", path, "should be a string")
        if name in FORMAT_PATTERNS:
            _add(out, {"pattern": FORMAT_PATTERNS[name]})
        elif name in ENGINE_FORMATS:
            out["format"] = name
            if name == "hostname":
                _add(out, {"maxLength": 253})
        elif name not in NUMBER_FORMATS:
            raise _refused("format", path, f"of the kind {name[:40]!r}")

    # ------------------------------------------------------------------------------------------- arrays, objects
    def _arrays(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        _copy_counts(schema, out, ("minItems", "maxItems"), path)
        unique = schema.get("uniqueItems")
        if unique not in (None, False) and not ("maxItems" in out and out["maxItems"] <= 1):
            raise _refused("uniqueItems", path)
        items, rest = schema.get("items"), "items"
        if isinstance(items, list):  # the older spelling of a tuple
            out["prefixItems"] = self._list(items, f"{path}.items", depth, allow_empty=True)
            rest = "additionalItems"
        elif "prefixItems" in schema:
            out["prefixItems"] = self._list(schema["prefixItems"], f"{path}.prefixItems", depth)
        if rest in schema:
            out["items"] = self.schema(schema[rest], f"{path}.{rest}", depth + 1)

    def _objects(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        for name in ("properties", "patternProperties", "$defs", "definitions"):
            if name not in schema:
                continue
            members = schema[name]
            if not isinstance(members, dict):
                raise _invalid(name, path, "should be an object of schemas")
            for key in members:
                _check_text(key, name, path)
                if name == "patternProperties":
                    _check_pattern(key, name, path)
            out[name] = {key: self.schema(s, f"{path}.{name}.{key[:60]}", depth + 1) for key, s in members.items()}
        if "additionalProperties" in schema:
            out["additionalProperties"] = self.schema(
                schema["additionalProperties"], f"{path}.additionalProperties", depth + 1
            )
        elif self._disable_additional and "properties" in out and "patternProperties" not in out:
            out["additionalProperties"] = False
        if "required" in schema:
            required = schema["required"]
            if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
                raise _invalid("required", path, "should be a list of strings")
            for key in required:
                _check_text(key, "required", path)
            out["required"] = list(dict.fromkeys(required))
        self._property_counts(schema, out, path)

    def _property_counts(self, schema: dict[str, Any], out: dict[str, Any], path: str) -> None:
        counts: dict[str, int] = {}
        _copy_counts(schema, counts, ("minProperties", "maxProperties"), path)
        required = set(out.get("required", ()))
        # A key may be written twice, and then counts once: only the required ones are sure to be there.
        if counts.get("minProperties", 0) > len(required):
            raise _refused("minProperties", path, "greater than the number of required properties")
        if "maxProperties" in counts:
            if not required.issuperset(out.get("properties", ())):
                raise _refused("maxProperties", path, "beside optional properties")
            out["maxProperties"] = counts["maxProperties"]

    # ------------------------------------------------------------------------------------------------ combined
    def _combined(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        extra = out.pop("allOf", [])
        for name in ("anyOf", "oneOf", "allOf"):
            if name in schema:
                out[name] = self._list(schema[name], f"{path}.{name}", depth)
        if extra:
            out["allOf"] = [*out.get("allOf", []), *extra]

    def _list(self, schemas: Any, path: str, depth: int, allow_empty: bool = False) -> list[Any]:
        if not isinstance(schemas, list) or not (schemas or allow_empty):
            raise InvalidRequest(f"A list of schemas was expected at {path}.", path)
        return [self.schema(schema, f"{path}.{i}", depth + 1) for i, schema in enumerate(schemas)]


def _add(out: dict[str, Any], schema: dict[str, Any]) -> None:
    """One more condition, for `_combined` to gather: a keyword of the caller's with the same name stays."""
    out.setdefault("allOf", []).append(schema)


def _copy_counts(schema: dict[str, Any], out: dict[str, Any], names: tuple[str, ...], path: str) -> None:
    for name in names:
        if name not in schema:
            continue
        value = schema[name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        whole = whole or (isinstance(value, float) and value.is_integer())
        if not whole or not 0 <= value <= _MAX_NUMBER:
            raise _invalid(name, path, "should be a whole number, not negative")
        out[name] = int(value)


def _check_pattern(pattern: Any, keyword: str, path: str) -> None:
    if not isinstance(pattern, str):
        raise _invalid(keyword, path, "should be a string")
    problem = problem_of(pattern)
    if problem is not None:
        raise _invalid(keyword, path, f"cannot be used: {problem}")


def _check_text(text: str, keyword: str, path: str) -> None:
    if _UNWRITABLE.search(text):
        raise _refused(keyword, path, "with control characters or unpaired surrogates")


def _check_number(value: Any, keyword: str, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(keyword, path, "should be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid(keyword, path, "should be a finite number")
    exact = abs(value) <= _MAX_NUMBER and (value == 0 or abs(value) >= _MIN_SCALE)
    if not exact or (isinstance(value, float) and float(f"{value:.{_MAX_DIGITS}g}") != value):
        raise _refused(keyword, path, f"with a number of more than {_MAX_DIGITS} digits")


def _check_value(value: Any, keyword: str, path: str) -> None:
    """A value of `enum` or `const`: at most as deep as a request's JSON may be."""
    if isinstance(value, str):
        _check_text(value, keyword, path)
    elif isinstance(value, dict):
        for key, member in value.items():
            _check_text(key, keyword, path)
            _check_value(member, keyword, path)
    elif isinstance(value, list):
        for member in value:
            _check_value(member, keyword, path)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        _check_number(value, keyword, path)


def _refused(keyword: str, path: str, what: str = "") -> InvalidRequest:
    where = f"{path}.{keyword}"
    return InvalidRequest(
        f"The schema's `{keyword}`{' ' + what if what else ''} cannot be enforced, at {where}.", where
    )


def _invalid(keyword: str, path: str, problem: str) -> InvalidRequest:
    where = f"{path}.{keyword}"
    return InvalidRequest(f"The schema's `{keyword}` {problem}, at {where}.", where)
