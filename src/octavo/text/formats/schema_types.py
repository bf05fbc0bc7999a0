"""Which types the schema of a tool lets an argument have. Formats that write values without quotes depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

ANY: Final = None
#: Names of JSON's types; `ANY` where the schema leaves it open.
Types = frozenset[str] | None

STRING: Final = frozenset({"string"})
_NAMES: Final = frozenset({"string", "integer", "number", "boolean", "null", "object", "array"})
#: Schemas within schemas; what is deeper may be anything.
_MAX_DEPTH: Final = 32


def property_schema(parameters: Mapping[str, Any], key: str) -> Any:
    """The schema of one argument; {} where there is none."""
    parameters = resolved(parameters, parameters)
    properties = parameters.get("properties")
    if isinstance(properties, Mapping) and key in properties:
        return properties[key]
    others = parameters.get("additionalProperties")
    return others if isinstance(others, Mapping) else {}


def property_types(parameters: Mapping[str, Any], key: str) -> Types:
    return _Reader(parameters).types(property_schema(parameters, key), 0)


def bare_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A schema that asks for the names and types of the arguments alone."""
    properties = resolved(parameters, parameters).get("properties")
    required = resolved(parameters, parameters).get("required")
    keys = [key for key in properties if isinstance(key, str)] if isinstance(properties, Mapping) else []
    types = {key: property_types(parameters, key) for key in keys}
    return {
        "type": "object",
        "properties": {key: {"type": sorted(names)} if names is not ANY else {} for key, names in types.items()},
        "required": [key for key in required if key in types] if isinstance(required, list) else [],
    }


def resolved(schema: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema that a chain of local references leads to; {}, which allows anything, where it leads nowhere."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, Mapping):
            return {}
        reference = schema.get("$ref")
        if reference is None:
            return schema
        schema = _pointed(str(reference), root)
    return {}


def _pointed(reference: str, root: Mapping[str, Any]) -> Any:
    if not reference.startswith("#"):
        return None
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        if not isinstance(found, Mapping):
            return None
        found = found.get(unquote(part).replace("~1", "/").replace("~0", "~"))
    return found


class _Reader:
    """Each schema is read once: those that refer to themselves end, and cost what they are long."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[int, Types] = {}

    def types(self, schema: Any, depth: int) -> Types:
        schema = resolved(schema, self._root)
        if id(schema) in self._known or depth > _MAX_DEPTH:
            return self._known.get(id(schema), ANY)
        self._known[id(schema)] = ANY
        found = _own_types(schema)
        for name in ("anyOf", "oneOf"):
            if isinstance(branches := schema.get(name), list) and branches:
                found = _both(found, _either([self.types(branch, depth + 1) for branch in branches]))
        if isinstance(parts := schema.get("allOf"), list):
            for part in parts:
                found = _both(found, self.types(part, depth + 1))
        self._known[id(schema)] = found
        return found


def _own_types(schema: Mapping[str, Any]) -> Types:
    found: Types = ANY
    declared = schema.get("type")
    names = [declared] if isinstance(declared, str) else declared
    if isinstance(names, list) and names and all(name in _NAMES for name in names if isinstance(name, str)):
        found = frozenset(name for name in names if isinstance(name, str))
        if schema.get("nullable") is True:
            found |= {"null"}
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list) and values:
        found = _both(found, frozenset(_type_of(value) for value in values))
    if found is ANY and "properties" in schema:
        found = frozenset({"object"})
    if found is ANY and "items" in schema:
        found = frozenset({"array"})
    return found


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, name in ((bool, "boolean"), (int, "integer"), (float, "number"), (str, "string"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def _either(sets: list[Types]) -> Types:
    together: frozenset[str] = frozenset()
    for types in sets:
        if types is ANY:
            return ANY
        together |= types
    return together


def _both(left: Types, right: Types) -> Types:
    """What both allow; where that is nothing the schema allows nothing, and the first is as good as any."""
    if left is ANY or right is ANY:
        return right if left is ANY else left
    common = left & right
    if "number" in left:
        common |= right & {"integer"}
    if "number" in right:
        common |= left & {"integer"}
    return common or left
