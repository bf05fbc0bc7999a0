"""Reads small files of a model whole. The files are not trusted: each has a bound, and what is wrong with one is a
`CheckpointError` that begins with its path."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, Final

from octavo.base.errors import CheckpointError

#: Of a file of a vocabulary. The largest tokenizer.json in use is near 35 MB.
MAX_VOCABULARY_BYTES: Final = 256 << 20


def read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise CheckpointError(f"{path}: {size} bytes, more than the {max_bytes} that such a file may have.")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def read_text(path: Path, max_bytes: int) -> str:
    """UTF-8, each end of a line as one "\\n"."""
    try:
        return io.TextIOWrapper(io.BytesIO(read_bytes(path, max_bytes)), encoding="utf-8").read()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text.") from None


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(read_text(path, max_bytes))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object was expected.")
    return value
