"""Where the references of a JSON schema lead, within its one document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import unquote

from octavo.base.errors import InvalidRequest
from octavo.text.grammars.schema_keywords import refused

#: Keywords that refer to a schema. Without a second document the dynamic ones lead where `$ref` would.
REFERENCES: Final = ("$ref", "$recursiveRef", "$dynamicRef")
#: Keywords whose values are data, in which nothing is a schema.
_DATA: Final = frozenset({"enum", "const", "default", "examples", "example"})
#: Keywords whose keys are names of the author's.
_MAPS: Final = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_INDEX: Final = re.compile("0|[1-9][0-9]{0,8}")


class References:
    """The places of a document to which references can lead."""

    def __init__(self, root: Any, path: str) -> None:
        """`path`: the place of the document in the request, the beginning of the paths in errors."""
        self._root = root
        self._path = path
        own = root.get("$id", root.get("id")) if isinstance(root, dict) else None
        self._base = own.rstrip("#") if isinstance(own, str) else ""
        self._named: dict[str, list[tuple[Any, str]]] = {}  # "#anchor" or the URI of a part -> what has that name
        self._below_id: set[int] = set()  # parts with a base URI of their own
        self._scan()

    def _scan(self) -> None:
        todo: list[tuple[Any, str, bool, bool]] = [(self._root, self._path, False, False)]
        while todo:
            node, path, is_map, is_below = todo.pop()
            if isinstance(node, dict) and not is_map:
                is_below = self._note(node, path) or is_below
                if is_below:
                    self._below_id.add(id(node))
            todo += [(child, where, maps, is_below) for child, where, maps in _children(node, path, is_map)]

    def _note(self, node: dict[str, Any], path: str) -> bool:
        """Note the names of a schema; whether it has a base URI of its own."""
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(name := node.get(keyword), str):
                self._named.setdefault(f"#{name}", []).append((node, path))
        own = node.get("$id", node.get("id"))
        if not isinstance(own, str) or node is self._root:
            return False
        self._named.setdefault(own, []).append((node, path))
        return not own.startswith("#")

    def target(self, schema: dict[str, Any], keyword: str, path: str) -> tuple[Any, str]:
        """The schema that `keyword` leads to, and its path. Raises `InvalidRequest` where there is none."""
        reference = schema[keyword]
        if not isinstance(reference, str):
            raise refused(keyword, path, "that is no text")
        if id(schema) in self._below_id and reference not in self._named:
            raise refused(keyword, path, "below an `$id` that is not the root's")
        found = self._named.get(reference, [])
        if len(found) > 1:
            raise refused(keyword, path, f"to {reference[:60]!r}, a name given twice,")
        if found:
            return found[0]
        before, _, fragment = reference.partition("#")
        if before and before != self._base:
            raise refused(keyword, path, "to another document")
        if f"#{fragment}" in self._named:
            return self._named[f"#{fragment}"][0]
        return self._pointed(fragment, reference, keyword, path)

    def _pointed(self, fragment: str, reference: str, keyword: str, path: str) -> tuple[Any, str]:
        """What a JSON pointer leads to."""
        found, where = self._root, self._path
        if fragment and not fragment.startswith("/"):
            raise refused(keyword, path, f"to {reference[:60]!r}, which is not in the schema,")
        for part in fragment.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            where = f"{where}.{name[:60]}"
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and _INDEX.fullmatch(name) and int(name) < len(found):
                found = found[int(name)]
            else:
                raise refused(keyword, path, f"to {reference[:60]!r}, which is not in the schema,")
        return found, where


def _children(node: Any, path: str, is_map: bool) -> Iterator[tuple[Any, str, bool]]:
    """What stands in a node: its value, path, and whether its keys are names."""
    if isinstance(node, list):
        for i, item in enumerate(node):
            yield item, f"{path}.{i}", False
    elif isinstance(node, dict):
        for key, value in node.items():
            if is_map or key not in _DATA:
                yield value, f"{path}.{key[:60]}", not is_map and key in _MAPS


def parts_of_objects(root: Any, references: References, path: str) -> set[int]:
    """The ids of schemas that describe a part of an object, beside others: none of them knows all its keys."""
    parts: set[int] = set()
    todo: list[tuple[Any, str, bool]] = [(root, path, False)]
    while todo:
        node, where, is_map = todo.pop()
        if isinstance(node, dict) and not is_map:
            for part in _beside_others(node):
                parts.add(id(part))
                if isinstance(part, dict) and "$ref" in part:
                    parts.add(_target_id(part, references, where))
        todo += _children(node, where, is_map)
    return parts


def _beside_others(node: dict[str, Any]) -> list[Any]:
    combined = [name for name in ("allOf", "anyOf", "oneOf") if isinstance(node.get(name), list)]
    is_mixed = len(combined) + ("properties" in node) + ("$ref" in node) > 1
    found = [part for name in combined if name == "allOf" or is_mixed for part in node[name]]
    return [*found, node] if is_mixed or "allOf" in combined else found


def _target_id(part: dict[str, Any], references: References, path: str) -> int:
    try:
        return id(references.target(part, "$ref", path)[0])
    except InvalidRequest:  # it is told when the schema is read
        return 0
