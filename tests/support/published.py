"""Bodies beside the published types of a client's package, all the way down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel


def unknown_fields(value: Any) -> Iterator[str]:
    """What a validated value has and its types do not know, as `Type.field`."""
    if isinstance(value, BaseModel):
        for name in value.model_extra or ():
            yield f"{type(value).__name__}.{name}"
        for name in type(value).model_fields:
            yield from unknown_fields(getattr(value, name))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from unknown_fields(child)
    elif isinstance(value, dict):
        for child in value.values():
            yield from unknown_fields(child)
