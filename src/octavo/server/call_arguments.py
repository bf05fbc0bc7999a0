"""The arguments of a call as a JSON value, for APIs that have no text there."""

from __future__ import annotations

from typing import Any

import msgspec
from pydantic_core import from_json


def value_of(arguments: str) -> Any:
    """As they were written; where the reply was cut off within them, the members that are complete."""
    try:
        from_json(arguments)
    except ValueError:
        try:
            return from_json(arguments, allow_partial=True)
        except ValueError:
            return {}
    return msgspec.Raw(arguments.encode())
