"""Many times as a few figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: Shares of the values, as they are reported.
PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest value that at least `percent` % of all do not exceed. `ordered` ascends."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread_ms(seconds: Sequence[float], percentiles: Sequence[int] = PERCENTILES) -> dict[str, float] | None:
    """Mean, median and percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(1000 * value for value in seconds)
    figures = {"mean": statistics.fmean(ordered), "median": statistics.median(ordered)}
    figures |= {f"p{percent}": percentile(ordered, percent) for percent in percentiles}
    figures |= {"max": ordered[-1]}
    return {name: round(value, 3) for name, value in figures.items()}
