"""Whether documents are valid for a schema, by another program's reading of it."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import jsonschema


def with_null(schema: Any) -> Any:
    """OpenAPI's `nullable`, as JSON Schema says it."""
    if isinstance(schema, list):
        return [with_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    types = schema.get("type")
    names = [types] if isinstance(types, str) else types
    more = {"type": [*names, "null"]} if schema.get("nullable") is True and isinstance(names, list) else {}
    return {key: with_null(value) for key, value in schema.items()} | more


def validator_of(schema: Any) -> Any:
    """Numbers are decimals, of which 0.07 is a multiple of 0.01."""
    schema = with_null(json.loads(json.dumps(schema), parse_float=Decimal))
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    return kind(schema, format_checker=kind.FORMAT_CHECKER)


def check(schema: Any, text: str) -> None:
    """`text` is one JSON document, valid for `schema`."""
    validator_of(schema).validate(json.loads(text, parse_float=Decimal))
