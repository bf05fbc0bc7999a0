"""Bodies of /v1/conversations."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from octavo.server.openai.protocol.common import WireModel
from octavo.server.responses.protocol.items import InputItem
from octavo.server.responses.protocol.request import Metadata

#: OpenAI's bound of what one request adds.
MAX_ADDED = 20

Added = Annotated[list[InputItem], Field(max_length=MAX_ADDED)]


class ConversationRequest(WireModel):
    items: Added | None = None
    metadata: Metadata | None = None


class ConversationUpdate(WireModel):
    metadata: Metadata | None


class ItemsRequest(WireModel):
    items: Added
