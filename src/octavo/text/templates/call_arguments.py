"""The arguments of a call in the history, as a chat template gets them.

Templates are written for an object. But a model may have been cut off within its arguments, or have written what is no
JSON at all, and whoever sends that back wants the model to see it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from octavo.text.formats.json_copy import JsonCopy
from octavo.text.formats.source import Malformed, Source

#: The member that holds a text of which no member can be read.
UNREADABLE: Final = "arguments"


class WrittenArguments(dict[str, Any]):
    """Arguments that are no JSON object. As a text, and for `tojson`, they are what was written; a template that goes
    over their members gets those that can be read in it, or where there are none one member with the text."""

    def __init__(self, written: str) -> None:
        super().__init__(_readable_members(written) or {UNREADABLE: written})
        self._written = written  # underscored: no template reaches it, and it hides no member

    def __str__(self) -> str:
        return self._written

    def __reduce__(self) -> tuple[type[WrittenArguments], tuple[str]]:
        return WrittenArguments, (self._written,)


def template_arguments(arguments: object) -> Mapping[str, Any]:
    """The object that `arguments` stand for: an object, its JSON text, or "", "null" and None for an empty one.

    Anything else becomes `WrittenArguments`. Raises `ValueError` for what has no JSON.
    """
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments, parse_constant=_no_number) if arguments.strip() else None
        except (ValueError, RecursionError):
            return WrittenArguments(arguments)
        written = arguments
    else:
        value, written = arguments, ""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return value
    try:
        return WrittenArguments(written or json.dumps(value, ensure_ascii=False))
    except (TypeError, RecursionError):
        raise ValueError(f"{type(value).__name__} is not JSON") from None


def _readable_members(written: str) -> dict[str, Any]:
    """The members of an object of which `written` is the beginning, as far as they can be read."""
    source = Source()
    source.feed(written)
    source.end(truncated=True)
    parts: list[str] = []
    copy = JsonCopy(parts.append)
    try:
        next(copy.run(source), None)
    except Malformed:
        parts.append(copy.completion())
    text = "".join(parts)
    if not text.startswith("{"):
        return {}
    # Half of a character that is written as two escapes is no text that a template could be given.
    whole = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-16-le", "surrogatepass")
    members: dict[str, Any] = json.loads(whole.decode("utf-16-le", "replace"))
    return members


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
