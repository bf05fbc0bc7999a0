"""A JSON schema is honoured in full or refused, never weakened in silence.

`prepare` walks a schema and writes a new one that has only keywords which the grammar engine enforces exactly. What it
cannot enforce is an `InvalidRequest` naming the keyword and its path. Where the engine is known to be loose, or knows a
keyword not at all, the new schema says the same by other means: dates become patterns, tuples `prefixItems`, references
of all spellings `$ref` to `$defs`, `oneOf` an `anyOf` whose alternatives exclude each other.

"Exactly" has one direction: every finished text is a valid document. The engine may be stricter than the schema: keys
come in the order of `properties`, integers are written without a fraction, dates have the years 1000 to 9999.
"""

from __future__ import annotations

import re
from typing import Any, Final

from octavo.base.errors import InvalidRequest
from octavo.text.grammars.schema_walk import Prepared, Walk

_DRAFT: Final = re.compile(r"https?://json-schema\.org/(?:draft-0[4567]|draft/20(?:19-09|20-12))/schema#?")


def prepare(
    schema: Any, param: str, *, max_depth: int = 64, disable_additional: bool = False, prefix: str = "d"
) -> Any:
    """The schema for the grammar engine. `param` is the request's field, the beginning of the paths in errors.

    `disable_additional`: objects with `properties` get no other keys than those, where the schema leaves it open.
    `prefix`: with which the names in `$defs` begin. Raises `InvalidRequest` for what cannot be enforced.
    """
    draft = schema.get("$schema") if isinstance(schema, dict) else None
    if not isinstance(schema, dict | bool):
        raise InvalidRequest("A JSON schema should be an object or a boolean.", param)
    if draft is not None and not (isinstance(draft, str) and _DRAFT.fullmatch(draft)):
        raise InvalidRequest(f"`$schema` should be one of JSON Schema's drafts 4 to 2020-12, at {param}.", param)
    return _walked(Walk(schema, param, max_depth, disable_additional, prefix, is_loose=False)).schema


def prepare_loosely(
    schema: Any, param: str, *, max_depth: int = 64, disable_additional: bool = False, prefix: str = "d"
) -> Prepared:
    """As `prepare`, but keywords that cannot be enforced are left out, each at its place, and the rest is held."""
    if not isinstance(schema, dict | bool):
        return Prepared({})
    try:
        return _walked(Walk(schema, param, max_depth, disable_additional, prefix, is_loose=True))
    except InvalidRequest as exc:
        return Prepared({}, (exc,))


def _walked(walk: Walk) -> Prepared:
    try:
        return walk.run()
    except RecursionError:  # a value of `enum` or `const` may be deeper than the schema
        raise InvalidRequest("The schema is nested too deeply.", walk.path) from None
