"""One reading of one JSON schema: keyword by keyword, into those of the grammar engine (`json_schema`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from octavo.base.errors import InvalidRequest
from octavo.text.grammars import schema_objects as objects
from octavo.text.grammars.schema_keywords import (
    TYPES,
    UNSUPPORTED,
    bounds,
    check_number,
    check_text,
    check_value,
    checked_count,
    invalid,
    refused,
)
from octavo.text.grammars.schema_refs import REFERENCES, References, parts_of_objects
from octavo.text.grammars.schema_regex import ENGINE_FORMATS, FORMAT_PATTERNS, REFUSED_FORMATS, patterns_of, problem_of
from octavo.text.grammars.schema_unions import Unions, tags_of

#: Keywords beside which no keyword knows all keys or items of a value.
_COMBINING: Final = ("allOf", "anyOf", "oneOf", "if", "dependentSchemas", "not", *REFERENCES)
#: Conditions of one object of which each doubles its alternatives.
_MAX_DEPENDENT: Final = 6


@dataclass(frozen=True)
class Prepared:
    """A schema for the grammar engine."""

    schema: Any
    dropped: tuple[InvalidRequest, ...] = ()  # what a loose reading left out


class _Union(NamedTuple):
    """A `oneOf` that was met."""

    out: dict[str, Any]  # in which it stands, prepared
    path: str
    tag: str  # the key that `discriminator` names, "" if there is none
    tags: list[list[str]]


class Walk:
    """One reading of one schema."""

    def __init__(
        self, root: Any, path: str, max_depth: int, disable_additional: bool, prefix: str, *, is_loose: bool
    ) -> None:
        self.path = path
        self._root = root
        self._prefix = prefix
        self._max_depth = max_depth
        self._is_loose = is_loose
        self._references = References(root, path)
        self._disable_additional = disable_additional
        self._parts = parts_of_objects(root, self._references, path) if disable_additional else set[int]()
        self._names: dict[int, str] = {}  # of the schemas that are referred to, by their ids
        self._todo: list[tuple[str, Any, str]] = []
        self._unions: list[_Union] = []
        self._stricter: dict[int, Any] = {}  # schemas that ask more than the author did, by their ids
        self._checked: set[int] = set()  # the ids of schemas that `_check` found sound
        self._dropped: list[InvalidRequest] = []

    def run(self) -> Prepared:
        out = self.schema(self._root, self.path, 0)
        definitions: dict[str, Any] = {}
        while self._todo:
            name, schema, path = self._todo.pop()
            definitions[name] = out if schema is self._root else self.schema(schema, path, 1)
        self._part_unions(Unions(definitions, self._stricter))
        if definitions and isinstance(out, dict):
            out = {**out, "$defs": definitions}
        return Prepared(out, tuple(self._dropped))

    def schema(self, schema: Any, path: str, depth: int) -> Any:
        if isinstance(schema, bool):
            return schema
        out: dict[str, Any] = {}
        if not self._try(self._check_shape, schema, path, depth):
            return out
        steps = (
            self._unsupported, self._types, self._values, self._reference, self._numbers, self._strings, self._arrays,
            self._objects, self._negation, self._combined,
        )  # fmt: skip
        for step in steps:
            self._try(step, schema, out, path, depth)
        return out

    def _try(self, step: Callable[..., object], *args: Any) -> bool:
        """Do it; where it cannot be enforced, a loose reading leaves it out, and the result is False."""
        try:
            step(*args)
        except InvalidRequest as exc:
            if not self._is_loose:
                raise
            self._dropped.append(exc)
            return False
        return True

    def _refuse(self, keyword: str, path: str, what: str = "") -> None:
        """Of keywords that are not read: they are refused, or left out."""
        error = refused(keyword, path, what)
        if not self._is_loose:
            raise error
        self._dropped.append(error)

    def _check(self, schema: Any, path: str, depth: int) -> None:
        """Whether it is a schema at all, in full, for one that is only read for what it means."""
        if id(schema) in self._checked:  # or it is being checked
            return
        self._checked.add(id(schema))
        was, self._is_loose = self._is_loose, False
        num_unions = len(self._unions)
        try:
            self.schema(schema, path, depth)
        except InvalidRequest:
            self._checked.discard(id(schema))
            raise
        finally:
            self._is_loose = was
            del self._unions[num_unions:]

    def _check_shape(self, schema: Any, path: str, depth: int) -> None:
        if not isinstance(schema, dict):
            raise InvalidRequest(f"A schema should be an object or a boolean, at {path}.", path)
        if depth >= self._max_depth:
            raise InvalidRequest(f"The schema is nested deeper than {self._max_depth} levels, at {path}.", path)

    # ------------------------------------------------------------------------------------------------- any type
    def _unsupported(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        for name in UNSUPPORTED:
            if name in schema:
                self._refuse(name, path)

    def _types(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        if "type" not in schema:
            return
        value = schema["type"]
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise invalid("type", path, "should be the name of a type or a list of names")
        for name in names:
            if name not in TYPES:
                raise invalid("type", path, f"names the unknown type {name[:40]!r}")
        if schema.get("nullable") is True and "null" not in names:  # OpenAPI 3.0: it belongs to `type`
            value = [*names, "null"]
        out["type"] = value

    def _values(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        if "enum" in schema:
            values = schema["enum"]
            if not isinstance(values, list) or not values:
                raise invalid("enum", path, "should be a list of at least one value")
            for value in values:
                check_value(value, "enum", path)
            out["enum"] = values
        if "const" in schema:
            check_value(schema["const"], "const", path)
            out["const"] = schema["const"]

    def _reference(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        for keyword in REFERENCES:
            if keyword not in schema:
                continue
            target, where = self._references.target(schema, keyword, path)
            reference = {"$ref": f"#/$defs/{self._name(target, where)}"}
            if "$ref" in out:
                _add(out, reference)
            else:
                out |= reference

    def _name(self, target: Any, path: str) -> str:
        """The name in `$defs` of a schema that is referred to."""
        if isinstance(target, bool):  # all of them are one object
            return self._name_of({} if target else {"not": {}}, path, 1 if target else 0)
        return self._name_of(target, path, id(target))

    def _name_of(self, target: Any, path: str, key: int) -> str:
        if key not in self._names:
            self._names[key] = f"{self._prefix}{len(self._names)}"
            self._todo.append((self._names[key], target, path))
        return self._names[key]

    # ------------------------------------------------------------------------------------------------- scalars
    def _numbers(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        for side in ("minimum", "maximum"):
            self._try(lambda side: out.update(bounds(schema, side, path)), side)
        if "multipleOf" in schema:
            check_number(schema["multipleOf"], "multipleOf", path)
            if schema["multipleOf"] <= 0:
                raise invalid("multipleOf", path, "should be greater than 0")
            out["multipleOf"] = schema["multipleOf"]

    def _strings(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        self._counts(schema, out, ("minLength", "maxLength"), path)
        if "pattern" in schema:
            self._try(_add_pattern, out, schema["pattern"], path)
        name = schema.get("format")
        if "format" in schema and not isinstance(name, str):
            raise invalid("format", path, "should be a string")
        if name in REFUSED_FORMATS:
            raise refused("format", path, f"of the kind {name!r}")
        if name in FORMAT_PATTERNS:
            _add(out, {"pattern": FORMAT_PATTERNS[name]})
        elif name in ENGINE_FORMATS:
            out["format"] = ENGINE_FORMATS[name]
            if out["format"] == "hostname":
                _add(out, {"maxLength": 253})

    def _counts(self, schema: dict[str, Any], out: dict[str, Any], names: tuple[str, ...], path: str) -> None:
        for name in names:
            if name in schema:
                self._try(lambda name: out.update({name: checked_count(schema[name], name, path)}), name)

    # ------------------------------------------------------------------------------------------- arrays
    def _arrays(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        self._counts(schema, out, ("minItems", "maxItems"), path)
        items, rest = schema.get("items"), "items"
        if isinstance(items, list):  # the older spelling of a tuple
            out["prefixItems"] = self._list(items, f"{path}.items", depth, allow_empty=True)
            rest = "additionalItems"
        elif "prefixItems" in schema:
            out["prefixItems"] = self._list(schema["prefixItems"], f"{path}.prefixItems", depth)
        if rest not in schema:
            rest = self._unevaluated(schema, "unevaluatedItems", rest, path)
        if rest in schema:
            out["items"] = self.schema(schema[rest], f"{path}.{rest}", depth + 1)
        unique = schema.get("uniqueItems")
        if unique not in (None, False) and not ("maxItems" in out and out["maxItems"] <= 1):
            raise refused("uniqueItems", path)

    def _unevaluated(self, schema: dict[str, Any], keyword: str, instead: str, path: str) -> str:
        """The keyword of which `instead` is the simpler spelling, if it says something: alone it is the same."""
        if schema.get(keyword, True) is True:
            return instead
        if any(name in schema for name in _COMBINING):
            self._refuse(keyword, path, "beside schemas that are combined")
            return instead
        return keyword

    # ------------------------------------------------------------------------------------------- objects
    def _objects(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        are_whole = True
        for name in ("properties", "patternProperties"):
            are_whole = self._try(self._members, schema, out, name, path, depth) and are_whole
        rest = "additionalProperties"
        if rest not in schema:
            rest = self._unevaluated(schema, "unevaluatedProperties", rest, path)
        closes = self._disable_additional and "properties" in out and "patternProperties" not in out
        if rest in schema and are_whole:  # without all the keys that are allowed it would forbid some of them
            out["additionalProperties"] = self.schema(schema[rest], f"{path}.{rest}", depth + 1)
        elif closes and are_whole and id(schema) not in self._parts:
            out["additionalProperties"] = False
        for step in (self._required, self._property_names, self._property_counts, self._dependent):
            self._try(step, schema, out, path, depth)

    def _members(self, schema: dict[str, Any], out: dict[str, Any], name: str, path: str, depth: int) -> None:
        if name not in schema:
            return
        members = schema[name]
        if not isinstance(members, dict):
            raise invalid(name, path, "should be an object of schemas")
        for key in members:
            check_text(key, name, path)
            if name == "patternProperties":
                _check_pattern(key, name, path)
        out[name] = {key: self.schema(s, f"{path}.{name}.{key[:60]}", depth + 1) for key, s in members.items()}

    def _required(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        if "required" in schema:
            out["required"] = _keys(schema["required"], "required", path)

    def _property_names(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        if "propertyNames" not in schema:
            return
        names, where = schema["propertyNames"], f"{path}.propertyNames"

        def follow(reference: dict[str, Any]) -> Any:
            target, place = self._references.target(reference, "$ref", where)
            self._check(target, place, depth + 1)
            return target

        self._check(names, where, depth + 1)
        try:
            objects.hold_names(out, objects.names_of(names, follow))
        except objects.Refusal as why:
            raise refused("propertyNames", path, str(why)) from None

    def _property_counts(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        counts: dict[str, int] = {}
        self._counts(schema, counts, ("minProperties", "maxProperties"), path)
        least, most = counts.get("minProperties", 0), counts.get("maxProperties")
        required = set(out.get("required", ()))
        optional = bool(out.get("properties", {}).keys() - required)
        try:
            if most is not None and optional and most <= 1:
                alone = objects.at_most_one(out, least=least) if most else {"additionalProperties": False}
                self._add_stricter(out, alone)
                least = min(least, len(required)) if least <= most else least
            elif most is not None and optional:
                raise refused("maxProperties", path, "beside optional properties")
            elif most is not None:
                out["maxProperties"] = most
            if least == 1 and not required:
                if not optional:
                    out["minProperties"] = 1
                else:
                    self._add_stricter(out, objects.at_least_one(out))
            elif least > len(required):  # a key may be written twice, and then counts once
                raise refused("minProperties", path, "greater than the number of required properties")
        except objects.Refusal:
            raise refused("minProperties" if most is None else "maxProperties", path, "of many properties") from None

    def _add_stricter(self, out: dict[str, Any], schema: dict[str, Any]) -> None:
        self._stricter[id(schema)] = schema
        _add(out, schema)

    def _dependent(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        found: list[Any] = []
        for name in ("dependentRequired", "dependentSchemas", "dependencies"):
            members = schema.get(name, {})
            if not isinstance(members, dict):
                raise invalid(name, path, "should be an object")
            for key, then in members.items():
                check_text(key, name, path)
                if name == "dependentRequired" or (name == "dependencies" and isinstance(then, list)):
                    found.append(objects.dependent(key, {"required": _keys(then, name, path)}))
                else:
                    held = self.schema(then, f"{path}.{name}.{key[:60]}", depth + 1)
                    found.append(objects.dependent(key, held))
            if len(found) > _MAX_DEPENDENT:
                raise refused(name, path, f"of more than {_MAX_DEPENDENT} keys")
        for condition in found:
            _add(out, condition)

    # ------------------------------------------------------------------------------------------------ combined
    def _negation(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        if "not" not in schema:
            return
        self._check(schema["not"], f"{path}.not", depth + 1)
        try:
            parts = objects.negated(schema["not"], out.get("enum"))
        except objects.Refusal:
            raise refused("not", path) from None
        for part in parts:
            if part is not True:
                _add(out, self.schema(part, f"{path}.not", depth + 1))

    def _combined(self, schema: dict[str, Any], out: dict[str, Any], path: str, depth: int) -> None:
        extra = out.pop("allOf", [])
        for name in ("anyOf", "oneOf", "allOf"):
            if name in schema:
                self._try(lambda name: out.update({name: self._list(schema[name], f"{path}.{name}", depth)}), name)
        if "oneOf" in out:
            self._unions.append(_Union(out, path, *tags_of(schema)))
        if extra:
            out["allOf"] = [*out.get("allOf", []), *extra]

    def _part_unions(self, unions: Unions) -> None:
        """Every `oneOf` becomes an `anyOf`, where no document fits two of its alternatives."""
        narrowed = []
        for union in self._unions:
            variants, overlap = unions.exclusive(union.out["oneOf"], union.tag, union.tags)
            if overlap is not None:
                first, second = overlap
                self._refuse(
                    "oneOf", union.path, f"of which one document may fit the alternatives {first} and {second},"
                )
                variants = union.out["oneOf"]
            narrowed.append((union.out, variants))
        for out, variants in narrowed:  # all at once: what is narrowed proves nothing for another
            del out["oneOf"]
            if "anyOf" in out:
                _add(out, {"anyOf": variants})
            else:
                out["anyOf"] = variants

    def _list(self, schemas: Any, path: str, depth: int, allow_empty: bool = False) -> list[Any]:
        if not isinstance(schemas, list) or not (schemas or allow_empty):
            raise InvalidRequest(f"A list of schemas was expected at {path}.", path)
        return [self.schema(schema, f"{path}.{i}", depth + 1) for i, schema in enumerate(schemas)]


def _add(out: dict[str, Any], schema: Any) -> None:
    """One more condition, for `_combined` to gather: a keyword of the caller's with the same name stays."""
    out.setdefault("allOf", []).append(schema)


def _check_pattern(pattern: Any, keyword: str, path: str) -> None:
    if not isinstance(pattern, str):
        raise invalid(keyword, path, "should be a string")
    problem = problem_of(pattern)
    if problem is not None:
        raise invalid(keyword, path, f"cannot be used: {problem}")


def _add_pattern(out: dict[str, Any], pattern: Any, path: str) -> None:
    found = patterns_of(pattern) if isinstance(pattern, str) else [pattern]
    for part in found:
        _check_pattern(part, "pattern", path)
    out["pattern"] = found[0]
    for part in found[1:]:
        _add(out, {"pattern": part})


def _keys(value: Any, keyword: str, path: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(key, str) for key in value):
        raise invalid(keyword, path, "should be a list of strings")
    for key in value:
        check_text(key, keyword, path)
    return list(dict.fromkeys(value))
