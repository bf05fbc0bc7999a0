"""What the stages found: rows in a file, one JSON object a line, and the table of them.

A row is written the moment it is known, so that a stage that crashes later keeps it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

Status = Literal["ok", "failed", "skipped"]
_HEAD: Final = ("stage", "what", "figure", "unit", "sheet", "here", "goal", "", "note")
#: Of a note in the table, and of one that says what went wrong; the file has all of it.
_NOTE_LENGTH, _PROBLEM_LENGTH = 56, 120


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    `sheet`, `here`: the figure as a share of the limit on the data sheet, and of the limit measured in this run.
    `goal`: what `against` should be at least, or at most where `less`. `is_check`: its failure fails the run.
    """

    stage: str
    what: str
    figure: float | None = None
    unit: str = ""
    sheet: float | None = None
    here: float | None = None
    goal: float | None = None
    against: Literal["figure", "sheet", "here"] = "figure"
    less: bool = False
    note: str = ""
    status: Status = "ok"
    is_check: bool = False

    @property
    def is_met(self) -> bool | None:
        """None without a goal or without the figure that it is about."""
        value = getattr(self, self.against)
        if self.goal is None or value is None:
            return None
        return bool(value <= self.goal if self.less else value >= self.goal)


def append(file: Path, row: Row) -> None:
    """Also to the terminal. The line is on the disk when this returns."""
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(dataclasses.asdict(row)) + "\n")
        out.flush()
        os.fsync(out.fileno())
    print("  " + "  ".join(cell for cell in _cells(row, is_long=True) if cell), flush=True)


def read(file: Path) -> list[Row]:
    """All rows so far. A line that a killed process left half-written is passed over."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Row(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def figure_of(rows: Iterable[Row], stage: str, what: str) -> float | None:
    """The last figure under this name."""
    values = [row.figure for row in rows if row.stage == stage and row.what == what and row.status == "ok"]
    return values[-1] if values else None


def failed_checks(rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.is_check and row.status == "failed"]


def table(rows: Sequence[Row]) -> str:
    """Columns as wide as they need to be. What was checked and what has a goal comes last, where it is seen first."""
    rows = sorted(rows, key=lambda row: 2 if row.goal is not None else 1 if row.is_check else 0)
    lines = [list(_HEAD), *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    right = {2, 4, 5}

    def aligned(line: list[str]) -> str:
        padded = zip(line, widths, strict=True)
        cells = (text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in enumerate(padded))
        return "  ".join(cells).rstrip()

    return "\n".join(map(aligned, lines))


def to_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    return [{**dataclasses.asdict(row), "met": row.is_met} for row in rows]


def _cells(row: Row, is_long: bool = False) -> list[str]:
    note = " ".join(row.note.split())
    most = _NOTE_LENGTH if row.status == "ok" else _PROBLEM_LENGTH
    is_told = row.status == "failed" or (row.figure is None and (row.status != "ok" or row.is_check))
    figure = row.status if is_told else _number(row.figure)
    met = {None: "", True: "met", False: "missed"}[row.is_met]
    return [
        row.stage, row.what, figure, row.unit, _percent(row.sheet), _percent(row.here), _goal(row), met,
        note if is_long or len(note) <= most else note[: most - 3] + "...",
    ]  # fmt: skip


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    sign = "<=" if row.less else ">="
    if row.against == "figure":
        return f"{sign} {row.goal:g}"
    return f"{sign} {row.goal:.0%} {row.against}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
