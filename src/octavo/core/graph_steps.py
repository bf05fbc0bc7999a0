"""How many steps a GPU replayed as graphs, and why the others were launched kernel by kernel."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from octavo.wire.messages import AS_GRAPHS

logger = logging.getLogger("octavo.core")

#: Seconds between two lines of the log, at least.
_LOG_INTERVAL: Final = 60.0


class GraphSteps:
    """Counts what `ModelRunnerOutput.graph` says, and tells the log now and then of steps that cost their launches."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.totals: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._clock = clock
        self._told_at = clock()

    def count(self, graph: str) -> None:
        if not graph:
            return
        self.totals[graph] += 1
        if graph not in AS_GRAPHS and self._clock() - self._told_at >= _LOG_INTERVAL:
            self._tell()

    def _tell(self) -> None:
        new = self.totals - self._told
        reasons = {graph: count for graph, count in new.most_common() if graph not in AS_GRAPHS}
        logger.info(
            "%d of the last %d steps were launched kernel by kernel: %s",
            sum(reasons.values()), new.total(), ", ".join(f"{reason} {count}" for reason, count in reasons.items()),
        )  # fmt: skip
        self._told, self._told_at = self.totals.copy(), self._clock()
