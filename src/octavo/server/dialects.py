"""Which API a request speaks, for what is told before a handler sees it: errors, and the list of models."""

from __future__ import annotations

from octavo.server.anthropic import errors as anthropic
from octavo.server.http.errors import ErrorShape
from octavo.server.http.exchange import Scope


def error_shape(scope: Scope) -> ErrorShape | None:
    """How errors are told; None: as OpenAI's API does."""
    path: str = scope["path"]
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and is_anthropic(scope)):
        return anthropic.shaped
    return None


def is_anthropic(scope: Scope) -> bool:
    """Anthropic's clients say which version of its API they speak, and no others do."""
    return any(name == b"anthropic-version" for name, _ in scope["headers"])
