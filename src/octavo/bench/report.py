"""Results on the terminal and in files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from octavo.base.errors import OctavoError
from octavo.bench.limits import Limits

#: Settings that no file shall keep.
_SECRETS = ("api_key",)


def result(benchmark: str, config: Any, machine: Mapping[str, Any], limits: Limits | None, **figures: Any) -> Any:
    """The JSON document of one benchmark."""
    settings = {name: value for name, value in asdict(config).items() if name not in _SECRETS}
    # JSON has no infinity.
    settings = {k: "inf" if isinstance(v, float) and math.isinf(v) else v for k, v in settings.items()}
    at_best = None if limits is None else asdict(limits)
    return {"benchmark": benchmark, "machine": dict(machine), "limits": at_best, "settings": settings, **figures}


def write(file: str | None, document: Mapping[str, Any]) -> None:
    """Raises `OctavoError`."""
    if file is None:
        return
    try:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as e:
        raise OctavoError(f"cannot write {file}: {e.strerror or e}") from e


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns as wide as they need to be, numbers to the right; None is a dash."""
    lines = [list(head), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    is_text = [any(isinstance(row[i], str) for row in rows) for i in range(len(head))]

    def aligned(line: Sequence[str]) -> str:
        cells = zip(line, widths, is_text, strict=True)
        return "  ".join(cell.ljust(width) if left else cell.rjust(width) for cell, width, left in cells).rstrip()

    return "\n".join(map(aligned, lines))


def bandwidth(gb_s: float, limits: Limits | None) -> str:
    """A rate of reading, beside what the memory gives."""
    if limits is None:
        return f"{gb_s:.1f} GB/s"
    most = limits.memory_read_gb_s
    return f"{gb_s:.1f} GB/s, {gb_s / most:.0%} of the memory's {most:.1f} GB/s"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
    return str(value)
