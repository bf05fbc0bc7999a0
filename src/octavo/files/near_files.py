"""Suggestions for a path that does not exist: the models near it."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from pathlib import Path

_MOST_ENTRIES = 2000
_MOST_LISTED = 8


def is_model(path: Path) -> bool:
    """Whether octavo would try to read it: a .gguf file, or a directory with a configuration or with .gguf files."""
    if path.is_dir():
        return has_configuration(path) or any(path.glob("*.gguf"))
    return path.suffix == ".gguf"


def has_configuration(directory: Path) -> bool:
    """Hugging Face's, or Mistral's and Meta's."""
    return any((directory / name).is_file() for name in ("config.json", "params.json"))


def near_models(path: Path) -> list[Path]:
    """Models beside `path` with a name like its own, the most alike first."""
    return _alike(path, is_model)


def what_is_there(path: Path) -> str:
    """The end of an error about a missing `path`: a similar path, or the models in its directory."""
    missing = path
    while not missing.parent.is_dir() and missing != missing.parent:
        missing = missing.parent
    if missing != path:
        near = _alike(missing, Path.is_dir)
        return f"; there is no directory {missing}" + (f": did you mean {near[0]}?" if near else "")
    near = near_models(path)
    if near:
        return f"; did you mean {' or '.join(map(str, near))}?"
    names = [entry.name for entry in _entries(path.parent) if is_model(entry)]
    if not names:
        return f"; there is no model in {path.parent.resolve()}"
    listed = ", ".join(names[:_MOST_LISTED]) + (", ..." if len(names) > _MOST_LISTED else "")
    return f"; the models in {path.parent.resolve()} are: {listed}"


def _alike(path: Path, wanted: Callable[[Path], bool]) -> list[Path]:
    entries = {entry.name: entry for entry in _entries(path.parent)}
    lower = {name.lower(): name for name in entries}
    # Names first, files second: a directory may hold thousands.
    names = difflib.get_close_matches(path.name.lower(), lower, 10)
    return [entry for entry in (entries[lower[name]] for name in names) if wanted(entry)][:3]


def _entries(directory: Path) -> list[Path]:
    try:
        return sorted(itertools.islice(directory.iterdir(), _MOST_ENTRIES))
    except OSError:
        return []
