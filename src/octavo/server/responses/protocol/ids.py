"""What every item has: an id."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from pydantic import Field

MAX_ID_CHARS = 256

#: An item as it is kept and sent: JSON, with an id.
Item = dict[str, Any]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
