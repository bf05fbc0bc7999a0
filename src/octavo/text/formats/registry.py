"""The formats by name: those of the table, and those that plug-ins of the operator add."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TypeVar

from octavo.base.errors import InvalidConfig, StartupError
from octavo.base.suggest import nearest
from octavo.text.formats.base import ReasoningFormat, ToolFormat
from octavo.text.formats.table import REASONING_ALIASES, REASONING_FORMATS, TOOL_ALIASES, TOOL_FORMATS

R = TypeVar("R", ToolFormat, ReasoningFormat)

_tools = dict(TOOL_FORMATS)
_reasoning = dict(REASONING_FORMATS)


def tool_format(name: str) -> ToolFormat:
    """The format of that name or alias. Raises `InvalidConfig`."""
    return _found(name, _tools, TOOL_ALIASES, "--tool-call-parser")


def reasoning_format(name: str) -> ReasoningFormat:
    """The format of that name or alias. Raises `InvalidConfig`."""
    return _found(name, _reasoning, REASONING_ALIASES, "--reasoning-parser")


def tool_format_names() -> list[str]:
    return sorted({*_tools, *TOOL_ALIASES})


def reasoning_format_names() -> list[str]:
    return sorted({*_reasoning, *REASONING_ALIASES})


def register(row: ToolFormat | ReasoningFormat) -> None:
    """Add a format, or put it in the place of the one of its name. For plug-ins, while the server starts."""
    if isinstance(row, ToolFormat):
        _tools[row.name] = row
    elif isinstance(row, ReasoningFormat):
        _reasoning[row.name] = row
    else:
        raise TypeError(f"register takes a ToolFormat or a ReasoningFormat, not {type(row).__name__}")


def load_plugin(path: str) -> None:
    """Run a Python file that the operator names; it calls `register`. Raises `StartupError`.

    The file has the rights of the server: it is the operator's own code.
    """
    if not Path(path).is_file():
        raise StartupError(f"--tool-parser-plugin: there is no file {path}")
    before = (dict(_tools), dict(_reasoning))
    try:
        runpy.run_path(path, run_name="octavo_tool_parser_plugin")
    except (Exception, SystemExit) as exc:
        raise StartupError(f"--tool-parser-plugin {path}: {type(exc).__name__}: {exc}") from exc
    if before == (_tools, _reasoning):
        raise StartupError(f"--tool-parser-plugin {path}: the file registers no format")


def _found(name: str, rows: dict[str, R], aliases: dict[str, str], flag: str) -> R:
    row = rows.get(name) or rows.get(aliases.get(name, ""))
    if row is None:
        raise InvalidConfig(f"{flag}: there is no format {name!r}{nearest(name, [*rows, *aliases])}")
    return row
