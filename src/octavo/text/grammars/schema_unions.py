"""`oneOf`: which alternatives exclude each other, and what must be added so that they do.

The grammar engine writes a document of one alternative and cannot ask whether it fits another. So `oneOf` is honoured
where no document fits two alternatives: they differ in their types, their values, a key's constant, the keys that they
require, or their bounds. Where they do not yet, some are narrowed until they do, which is stricter than the schema.

Schemas here are those that `json_schema` writes: only keywords of the engine, and references to `$defs`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

_ALL_TYPES: Final = frozenset({"string", "number", "boolean", "null", "array", "object"})
_OBJECT_WORDS: Final = frozenset({"properties", "required", "additionalProperties", "patternProperties"})
_MAX_DEPTH: Final = 12
#: Pairs of schemas that are compared for one document.
_MAX_PAIRS: Final = 15_000


@dataclass(frozen=True)
class _Facts:
    """What holds of every document of a schema."""

    parts: tuple[Mapping[str, Any], ...]  # all of them hold
    choices: tuple[list[Any], ...]  # one of each holds
    types: frozenset[str]  # integers are of the type "number"
    only_integers: bool
    values: list[Any] | None

    def all_of(self, name: str) -> Iterator[Any]:
        return (part[name] for part in self.parts if name in part)

    @cached_property
    def required(self) -> frozenset[str]:
        return frozenset(key for keys in self.all_of("required") for key in keys)

    @property
    def is_untyped(self) -> bool:
        """A schema of an object that forgot to say so."""
        return self.types == _ALL_TYPES and any(part.keys() & _OBJECT_WORDS for part in self.parts)

    def bounds(self, low: str, high: str) -> tuple[tuple[float, int], tuple[float, int]]:
        """The least and the greatest, as pairs that compare: (3, 1) is more than 3, (3, -1) less than 3."""
        lows = [(value, 0) for value in self.all_of(low)]
        highs = [(value, 0) for value in self.all_of(high)]
        if low == "minimum":
            lows += [(value, 1) for value in self.all_of("exclusiveMinimum")]
            highs += [(value, -1) for value in self.all_of("exclusiveMaximum")]
        return max(lows, default=(-math.inf, 0)), min(highs, default=(math.inf, 0))

    def at_key(self, key: str) -> list[Any]:
        """The schemas that the value of a key fits, all of them."""
        return [schema for part in self.parts if (schema := _at_key(part, key)) is not True]


def _at_key(part: Mapping[str, Any], key: str) -> Any:
    if key in part.get("properties", {}):
        return part["properties"][key]
    return True if "patternProperties" in part else part.get("additionalProperties", True)


class Unions:
    """Decides it for the schemas of one document."""

    def __init__(self, definitions: Mapping[str, Any], stricter: Collection[int] = ()) -> None:
        """`stricter`: the ids of schemas that ask more than the author did, and prove nothing."""
        self._definitions = definitions
        self._stricter = stricter
        self._num_pairs = 0
        self._known: dict[int, tuple[Any, _Facts]] = {}  # of single schemas, by their ids

    def exclusive(
        self, variants: Sequence[Any], tag: str = "", tags: Sequence[Sequence[str]] = ()
    ) -> tuple[list[Any], tuple[int, int] | None]:
        """The variants, narrowed where need be, and the first two that cannot be told apart.

        `tags`: for each variant the values of the key `tag` that name it (OpenAPI's `discriminator`).
        """
        narrowed, overlap = self._narrowed(variants)
        if overlap is None or not tags:
            return narrowed, overlap
        return self._narrowed(
            [
                {"allOf": [variant, {"properties": {tag: {"enum": list(names)}}, "required": [tag]}]}
                for variant, names in zip(variants, tags, strict=True)
            ]
        )

    def _narrowed(self, variants: Sequence[Any]) -> tuple[list[Any], tuple[int, int] | None]:
        narrowed = list(variants)
        if all(self._facts([variant]).is_untyped for variant in variants):
            narrowed = [{"type": "object", "allOf": [variant]} for variant in variants]
        if self._have_a_tag(narrowed):
            return narrowed, None
        for j in range(len(variants)):
            for i in range(j):
                if self.disjoint([narrowed[i]], [narrowed[j]]):
                    continue
                keys = self._telling_keys(narrowed[i], narrowed[j])
                if keys is None or self._num_pairs > _MAX_PAIRS:
                    return narrowed, (i, j)
                for place, key in zip((i, j), keys, strict=True):
                    narrowed[place] = {"allOf": [narrowed[place], {"properties": {key: False}}]}
        return narrowed, None

    def _have_a_tag(self, variants: list[Any]) -> bool:
        """All are objects that have one key with values of their own: seen without comparing each with each."""
        facts = [self._facts([variant]) for variant in variants]
        if any(variant.types != {"object"} for variant in facts):
            return False
        for key in frozenset.intersection(*(variant.required for variant in facts)):
            lists = [self._facts(variant.at_key(key)).values for variant in facts]
            texts = [value for values in lists if values is not None for value in values if isinstance(value, str)]
            if len(texts) == len(set(texts)) == sum(len(values) if values else len(texts) + 1 for values in lists):
                return True
        return False

    def _telling_keys(self, first: Any, second: Any) -> tuple[str, str] | None:
        """For each of two schemas of objects a key that it can do without and the other cannot."""
        one, other = self._facts([first]), self._facts([second])
        if not one.types == other.types == {"object"}:
            return None
        theirs, ours = sorted(other.required - one.required), sorted(one.required - other.required)
        return (theirs[0], ours[0]) if theirs and ours else None

    # ------------------------------------------------------------------------------------------- disjoint
    def disjoint(self, first: list[Any], second: list[Any], depth: int = 0) -> bool:
        """No document fits all of `first` and all of `second`, for sure."""
        self._num_pairs += 1
        if depth > _MAX_DEPTH or self._num_pairs > _MAX_PAIRS:
            return False
        a, b = self._facts(first), self._facts(second)
        if all(self._differ_in(kind, a, b, depth) for kind in a.types & b.types):
            return True
        if _excludes(a, b) or _excludes(b, a):
            return True
        return self._all_choices_differ(a, second, depth) or self._all_choices_differ(b, first, depth)

    def _all_choices_differ(self, facts: _Facts, other: list[Any], depth: int) -> bool:
        return any(
            all(self.disjoint([*facts.parts, choice], other, depth + 1) for choice in choices)
            for choices in facts.choices
        )

    def _differ_in(self, kind: str, a: _Facts, b: _Facts, depth: int) -> bool:
        """No value of that type fits both."""
        if kind == "number":
            return _apart(a.bounds("minimum", "maximum"), b.bounds("minimum", "maximum"))
        if kind == "string":
            return _apart(a.bounds("minLength", "maxLength"), b.bounds("minLength", "maxLength"))
        if kind == "array":
            return self._arrays_differ(a, b, depth)
        if kind == "object":
            keys = a.required | b.required
            if any(False in a.at_key(key) or False in b.at_key(key) for key in keys):
                return True
            return any(self.disjoint(a.at_key(key), b.at_key(key), depth + 1) for key in sorted(keys))
        return False

    def _arrays_differ(self, a: _Facts, b: _Facts, depth: int) -> bool:
        if _apart(a.bounds("minItems", "maxItems"), b.bounds("minItems", "maxItems")):
            return True
        size = max(0, *(facts.bounds("minItems", "maxItems")[0][0] for facts in (a, b)))
        return any(self.disjoint(_at_index(a, i), _at_index(b, i), depth + 1) for i in range(int(min(size, 8))))

    # ------------------------------------------------------------------------------------------- facts
    def _facts(self, schemas: list[Any]) -> _Facts:
        if len(schemas) != 1 or isinstance(schemas[0], bool):
            return self._gathered(schemas)
        [schema] = schemas
        if id(schema) not in self._known:
            self._known[id(schema)] = (schema, self._gathered(schemas))
        return self._known[id(schema)][1]

    def _gathered(self, schemas: list[Any]) -> _Facts:
        parts: list[Mapping[str, Any]] = []
        choices: list[list[Any]] = []
        todo, seen = list(schemas), set[str]()
        while todo:
            schema = todo.pop()
            if schema is False:
                return _Facts((), (), frozenset(), False, [])
            if schema is True:
                continue
            parts.append(schema)
            todo += [part for part in schema.get("allOf", ()) if id(part) not in self._stricter]
            choices += [schema[name] for name in ("anyOf", "oneOf") if name in schema]
            name = schema.get("$ref", "").removeprefix("#/$defs/")
            if name and name not in seen and name in self._definitions:
                seen.add(name)
                todo.append(self._definitions[name])
        types, only_integers = _types(parts)
        return _Facts(tuple(parts), tuple(choices), types, only_integers, _values(parts))


def _types(parts: list[Mapping[str, Any]]) -> tuple[frozenset[str], bool]:
    types, only_integers = _ALL_TYPES, False
    for part in parts:
        if "type" not in part:
            continue
        names = {part["type"]} if isinstance(part["type"], str) else set(part["type"])
        only_integers = only_integers or ("integer" in names and "number" not in names)
        types &= {"number" if name == "integer" else name for name in names}
    return types, only_integers


def _values(parts: list[Mapping[str, Any]]) -> list[Any] | None:
    """The only values that fit; None: they are not listed."""
    lists = [part["enum"] for part in parts if "enum" in part] + [[part["const"]] for part in parts if "const" in part]
    if not lists:
        return None
    return [value for value in lists[0] if all(any(same(value, other) for other in more) for more in lists[1:])]


def types_of(schema: Any) -> frozenset[str]:
    """The types that documents of a prepared schema may have; "number" for integers too."""
    definitions = schema.get("$defs", {}) if isinstance(schema, Mapping) else {}
    unions = Unions(definitions)
    return frozenset(kind for kind in _ALL_TYPES if not unions.disjoint([schema], [{"type": kind}]))


def same(a: Any, b: Any) -> bool:
    """Equal as JSON Schema has it: 1 and 1.0 are one number, 1 and true are not one value."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def type_of(value: Any) -> str:
    """The type of a JSON value; "number" for integers too."""
    if value is None:
        return "null"
    kinds = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "object")


def _excludes(a: _Facts, b: _Facts) -> bool:
    """None of the values of `b` fits `a`."""
    return b.values is not None and not any(_may_fit(value, a) for value in b.values)


def _may_fit(value: Any, facts: _Facts) -> bool:
    kind = type_of(value)
    if kind not in facts.types or (facts.values is not None and not any(same(value, v) for v in facts.values)):
        return False
    if kind == "number":
        low, high = facts.bounds("minimum", "maximum")
        return bool(low <= (value, 0) <= high) and not (facts.only_integers and value != int(value))
    if kind == "string":
        low, high = facts.bounds("minLength", "maxLength")
        return bool(low <= (len(value), 0) <= high)
    if kind == "object":
        return all(key in value for key in facts.required)
    return True


_Bound = tuple[float, int]


def _apart(a: tuple[_Bound, _Bound], b: tuple[_Bound, _Bound]) -> bool:
    return a[1] < b[0] or b[1] < a[0]


def _at_index(facts: _Facts, index: int) -> list[Any]:
    """The schemas that the item at that place fits, all of them."""
    found = []
    for part in facts.parts:
        first = part.get("prefixItems", [])
        found.append(first[index] if index < len(first) else part.get("items", True))
    return found


def tags_of(schema: Mapping[str, Any]) -> tuple[str, list[list[str]]]:
    """OpenAPI's `discriminator`: the key whose value names the alternative, and the names of each."""
    chosen = schema.get("discriminator")
    tag = chosen.get("propertyName") if isinstance(chosen, dict) else None
    references = [variant.get("$ref") if isinstance(variant, dict) else None for variant in schema["oneOf"]]
    if not isinstance(tag, str) or not all(isinstance(reference, str) for reference in references):
        return "", []
    mapping = chosen.get("mapping") if isinstance(chosen, dict) else None
    mapping = mapping if isinstance(mapping, dict) else {}
    tags = []
    for reference in map(str, references):
        name = reference.rsplit("/", 1)[-1]
        tags.append([key for key, value in mapping.items() if value in (reference, name)] or [name])
    return tag, tags
