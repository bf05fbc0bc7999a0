"""Keywords that say something of an object's keys, in other words: those that the grammar engine knows.

Each function returns schemas that hold beside the others (`allOf`), or changes the keywords `out` of the object.
`Refusal` says why that cannot be done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from octavo.text.grammars.schema_keywords import TYPES, UNSUPPORTED
from octavo.text.grammars.schema_refs import REFERENCES
from octavo.text.grammars.schema_regex import ENGINE_FORMATS, FORMAT_PATTERNS, problem_of
from octavo.text.grammars.schema_unions import same

#: Alternatives that one keyword may become; each of them is a grammar of the whole object.
_MAX_ALTERNATIVES: Final = 16
#: What a schema may say of a name, and what says nothing of it.
_OF_NAMES: Final = frozenset((
    "type", "enum", "const", "pattern", "minLength", "maxLength", "format", "$ref", "allOf", "anyOf", "oneOf",
))  # fmt: skip
_OF_OTHERS: Final = frozenset((
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items", "prefixItems", "minItems",
    "maxItems", "uniqueItems", "properties", "required", "patternProperties", "additionalProperties", "propertyNames",
    "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "nullable",
))  # fmt: skip
_CONSTRAINTS: Final = _OF_NAMES | _OF_OTHERS | {"not", *UNSUPPORTED, *REFERENCES}
_MAX_DEPTH: Final = 8


class Refusal(Exception):
    """Why a keyword cannot be written in other words; completes "cannot be enforced"."""


# ------------------------------------------------------------------------------------------------ negation
def negated(schema: Any, values: list[Any] | None) -> list[Any]:
    """Schemas that say `not`. `values`: the `enum` that stands beside it."""
    if isinstance(schema, bool):
        return [not schema]
    words = schema.keys() & _CONSTRAINTS
    if not words:
        return [False]
    if words == {"not"}:
        return [schema["not"]]
    if words == {"type"}:
        return [_without_types(schema["type"])]
    if words in ({"enum"}, {"const"}) and values is not None:
        listed = schema.get("enum", [schema.get("const")])
        return [{"enum": left} if (left := [v for v in values if not any(same(v, o) for o in listed)]) else False]
    if words == {"required"} and len(set(schema["required"])) == 1:
        return [{"type": "object", "properties": {schema["required"][0]: False}}]
    if words == {"anyOf"}:
        return [part for branch in schema["anyOf"] for part in negated(branch, values)]
    raise Refusal


def _without_types(names: Any) -> Any:
    gone = {names} if isinstance(names, str) else set(names)
    if "integer" in gone and "number" not in gone:
        raise Refusal  # fractions would be left
    left = sorted(TYPES - gone - {"integer"})
    return {"type": left} if left else False


# ------------------------------------------------------------------------------------------------ dependencies
def dependent(key: str, then: Any) -> Any:
    """Where `key` is, `then` holds."""
    return {"anyOf": [{"properties": {key: False}}, then]}


# ------------------------------------------------------------------------------------------------ counts
def at_least_one(out: Mapping[str, Any]) -> Any:
    """One of the optional properties is there."""
    return {"anyOf": [{"required": [key]} for key in _few(out)]}


def at_most_one(out: Mapping[str, Any], *, least: int) -> Any:
    """Not more than one property is there."""
    required = out.get("required", ())
    if len(required) > 1:
        return False
    keys = list(required) or _few(out)
    alone = [{"required": [key], "properties": {key: True}, "additionalProperties": False} for key in keys]
    return {"anyOf": alone if least or required else [{"additionalProperties": False}, *alone]}


def _few(out: Mapping[str, Any]) -> list[str]:
    keys = [key for key, value in out.get("properties", {}).items() if value is not False]
    if not keys or len(keys) > _MAX_ALTERNATIVES:
        raise Refusal
    return keys


# ------------------------------------------------------------------------------------------------ names
@dataclass(frozen=True)
class Names:
    """The keys that an object may have: those of a list, or those of a length that match a pattern."""

    values: tuple[str, ...] | None = None
    pattern: str | None = None
    least: int = 0
    most: int | None = None

    @property
    def is_any(self) -> bool:
        return self == Names()

    def both(self, other: Names) -> Names:
        if self.values is not None or other.values is not None:
            listed, rest = (self, other) if self.values is not None else (other, self)
            if rest.pattern is not None:
                raise Refusal("with both a list and a pattern")
            return Names(tuple(name for name in listed.values or () if rest.allows(name)))
        if self.pattern and other.pattern:
            raise Refusal("with two patterns")
        ends = [most for most in (self.most, other.most) if most is not None]
        return Names(None, self.pattern or other.pattern, max(self.least, other.least), min(ends, default=None))

    def allows(self, name: str) -> bool:
        """Of names without a pattern."""
        if self.values is not None:
            return name in self.values
        return self.least <= len(name) and (self.most is None or len(name) <= self.most)


def names_of(schema: Any, follow: Callable[[dict[str, Any]], Any], depth: int = 0) -> Names:
    """What `propertyNames` allows. `follow` gives the schema that a `$ref` leads to."""
    if isinstance(schema, bool):
        return Names() if schema else Names(())
    if not isinstance(schema, dict) or depth > _MAX_DEPTH or schema.keys() & (_CONSTRAINTS - _OF_NAMES - _OF_OTHERS):
        raise Refusal("with more than a list, a pattern or a length")
    found = Names()
    types = schema.get("type", "string")
    if "string" not in ([types] if isinstance(types, str) else types):
        found = Names(())
    lists = [schema["enum"]] if isinstance(schema.get("enum"), list) else []
    for listed in [*lists, *([[schema["const"]]] if "const" in schema else [])]:
        found = found.both(Names(tuple(value for value in listed if isinstance(value, str))))
    if (pattern := _pattern_of(schema)) is not None:
        found = found.both(Names(pattern=pattern))
    if "minLength" in schema or "maxLength" in schema:
        found = found.both(Names(least=int(schema.get("minLength", 0)), most=schema.get("maxLength")))
    if "$ref" in schema:
        found = found.both(names_of(follow(schema), follow, depth + 1))
    for part in schema.get("allOf", ()):
        found = found.both(names_of(part, follow, depth + 1))
    for word in ("anyOf", "oneOf"):
        if word in schema:
            found = found.both(_any_of([names_of(part, follow, depth + 1) for part in schema[word]]))
    return found


def _pattern_of(schema: Mapping[str, Any]) -> str | None:
    pattern, name = schema.get("pattern"), schema.get("format")
    if name in ENGINE_FORMATS:
        raise Refusal(f"with the format {name!r}")
    of_format = FORMAT_PATTERNS.get(name) if isinstance(name, str) else None
    if pattern is not None and of_format is not None:
        raise Refusal("with both a pattern and a format")
    return pattern if pattern is not None else of_format


def _any_of(choices: list[Names]) -> Names:
    if any(choice.is_any for choice in choices):
        return Names()
    if len(choices) == 1:
        return choices[0]
    if any(choice.values is None for choice in choices):
        raise Refusal("with alternatives that are not lists")
    return Names(tuple(dict.fromkeys(name for choice in choices for name in choice.values or ())))


def hold_names(out: dict[str, Any], names: Names) -> None:
    """Change an object's keywords so that it has no other keys."""
    if names.is_any:
        return
    rest = out.get("additionalProperties", True)
    properties: dict[str, Any] = out.get("properties", {})
    if names.pattern is None:
        properties = {key: value if names.allows(key) else False for key, value in properties.items()}
    elif properties:
        raise Refusal("with a pattern beside `properties`")
    if "patternProperties" in out:
        raise Refusal("beside `patternProperties`")
    if names.values is not None:
        properties |= {name: rest for name in names.values if name not in properties}
    elif rest is not False:
        out["patternProperties"] = {_pattern(names): rest}
    out["properties"] = properties
    out["additionalProperties"] = False


def _pattern(names: Names) -> str:
    if names.pattern is not None:
        if names.least or names.most is not None:
            raise Refusal("with both a pattern and a length")
        if problem_of(names.pattern) is not None:
            raise Refusal("with a pattern that cannot be used")
        return names.pattern
    return rf"^[\s\S]{{{names.least},{'' if names.most is None else names.most}}}$"
