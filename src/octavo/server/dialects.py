"""Which API a request speaks, for what is told before a handler sees it: errors, and the list of models."""

from __future__ import annotations

from octavo.server.anthropic import errors as anthropic
from octavo.server.http.errors import ErrorShape
from octavo.server.http.exchange import Scope, header_of
from octavo.server.ollama import errors as ollama

#: Other paths behind /api are often those of OpenAI's API, with a proxy's or another provider's prefix.
_OLLAMA = tuple(
    f"/api/{name}"
    for name in (
        "chat", "generate", "tags", "show", "ps", "version", "embed", "pull", "push", "create", "copy",
        "delete", "blobs",
    )
)  # fmt: skip


def error_shape(scope: Scope) -> ErrorShape | None:
    """How errors are told; None: as OpenAI's API does."""
    path: str = scope["path"]
    if path.startswith(_OLLAMA):
        return ollama.shaped
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and is_anthropic(scope)):
        return anthropic.shaped
    return None


def is_anthropic(scope: Scope) -> bool:
    """Anthropic's clients say which version of its API they speak, and no others do."""
    return header_of(scope, b"anthropic-version") is not None
