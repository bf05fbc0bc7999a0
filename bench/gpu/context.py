"""What a stage is told: where to put its rows, how much time it has, on which device, and what was measured before."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpu import rows
from gpu.roofline import Peaks, datasheet
from gpu.rows import Row
from gpu.shapes import SHAPES, Shape, tiny, write_model
from gpu.workloads import Load, shrunk


@dataclass(frozen=True, kw_only=True)
class Context:
    """`deadline` is of time.time(), the same in all processes. `directory` belongs to the run; stages may write to it.

    `device` is "cuda", or "cpu" for trying the program out: then everything is tiny and no figure means anything.
    """

    stage: str
    directory: Path
    device: str
    device_name: str
    deadline: float
    is_quick: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)  # more of `octavo.LLM`'s

    @classmethod
    def read(cls, file: Path) -> Context:
        values = json.loads(file.read_text())
        return cls(**{**values, "directory": Path(values["directory"])})

    def save(self) -> Path:
        file = self.directory / f"context-{self.stage}.json"
        file.write_text(json.dumps({**asdict(self), "directory": str(self.directory)}))
        return file

    @property
    def is_tiny(self) -> bool:
        return self.device == "cpu"

    @property
    def rows_file(self) -> Path:
        return self.directory / "rows.jsonl"

    @property
    def sheet(self) -> Peaks | None:
        return datasheet(self.device_name)

    @property
    def here(self) -> Peaks | None:
        """The limits as the stage of that name measured them in this run."""
        file = self.directory / "limits.json"
        return Peaks.from_json(json.loads(file.read_text())) if file.exists() else None

    def left(self) -> float:
        """Seconds until this stage is ended."""
        return self.deadline - time.time()

    def row(self, what: str, figure: float | None = None, unit: str = "", **more: Any) -> None:
        if self.is_tiny:  # goals are about figures that mean something
            more = {name: value for name, value in more.items() if name not in ("goal", "against", "less")}
        rows.append(self.rows_file, Row(stage=self.stage, what=what, figure=figure, unit=unit, **more))

    def check(self, what: str, is_good: bool, note: str = "", figure: float | None = None, unit: str = "") -> None:
        status: rows.Status = "ok" if is_good else "failed"
        self.row(what, figure, unit, note=note, status=status, is_check=True)

    def figure(self, stage: str, what: str) -> float | None:
        """What an earlier stage found."""
        return rows.figure_of(rows.read(self.rows_file), stage, what)

    def share(self, of: Callable[[Peaks], float]) -> dict[str, float]:
        """`sheet` and `here` of a row, where the limits are known."""
        known = {"sheet": self.sheet, "here": self.here}
        return {name: of(peaks) for name, peaks in known.items() if peaks is not None and not self.is_tiny}

    def bandwidth_share(self, rate: float) -> dict[str, float]:
        """Of `rate` in bytes a second."""
        return self.share(lambda peaks: rate / peaks.bandwidth)

    def flops_share(self, rate: float, is_fp8: bool = False) -> dict[str, float]:
        """Of `rate` in FLOP/s."""
        return self.share(lambda peaks: rate / (peaks.fp8 if is_fp8 else peaks.bf16))

    def has_time(self, seconds: float, what: str) -> bool:
        """Whether about so many seconds are left; when not, a row says that `what` was left out."""
        if self.is_tiny or self.left() > seconds:
            return True
        self.row(what, note=f"takes about {seconds:.0f} s, {max(0.0, self.left()):.0f} s are left", status="skipped")
        return False

    def shape(self, name: str) -> Shape:
        return tiny(SHAPES[name]) if self.is_tiny else SHAPES[name]

    def model(self, name: str) -> Path:
        """A directory with the configuration and the tokenizer of a shape."""
        return write_model(self.shape(name), self.directory / "models", "float32" if self.is_tiny else "bfloat16")

    def sized(self, load: Load, vocab: int) -> Load:
        """The load; a small one where everything is tiny."""
        return shrunk(load, vocab) if self.is_tiny else load
