"""What the engine does while it starts, for who waits: a bar on a terminal, lines in a log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

logger = logging.getLogger(__name__)

#: (phase, detail), as the engine reports them.
OnPhase = Callable[[str, str], None]

_COUNTED = re.compile(r"(\d+) of (\d+) (\w+)")


@contextlib.contextmanager
def phase_report() -> Iterator[OnPhase]:
    """Takes the engine's phases: those that count are a bar where stderr is a terminal."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield PhaseLog()
        return
    bar = PhaseBar()
    try:
        yield bar
    finally:
        bar.close()


class PhaseLog:
    """Logs each phase, and its progress once in `INTERVAL` seconds."""

    INTERVAL = 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._name = ""
        self._time = 0.0

    def __call__(self, name: str, detail: str) -> None:
        now = self._clock()
        if name != self._name or now - self._time >= self.INTERVAL:
            self._name, self._time = name, now
            logger.info("engine: %s", f"{name} {detail}".strip())


class PhaseBar:
    """Shows "n of m things" as a bar on stderr, which is wiped off at its end, and logs the other phases."""

    def __init__(self) -> None:
        self._log = PhaseLog()
        self._name = ""
        self._bar: Any = None

    def __call__(self, name: str, detail: str) -> None:
        counted = _COUNTED.fullmatch(detail)
        if counted is None or name != self._name:
            self.close()
            self._name = name
        if counted is None:
            self._log(name, detail)
            return
        done, total, unit = int(counted[1]), int(counted[2]), counted[3]
        if self._bar is None:
            # Imported here: most servers start without a terminal.
            from tqdm import tqdm  # type: ignore[import-untyped]

            # The engine reports seldom enough for every report to be drawn.
            style = {"leave": False, "mininterval": 0, "miniters": 1}
            self._bar = tqdm(desc=f"engine: {name}", total=total, unit=f" {unit}", file=sys.stderr, **style)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
