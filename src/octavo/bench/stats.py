"""Many times as a few figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: Shares of the values, as they are reported.
PERCENTILES = (50, 90, 99)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The value at `percent` % of the way through `ordered`, which ascends; between two of them on their line."""
    rank = percent / 100 * (len(ordered) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def spread_ms(seconds: Sequence[float], percentiles: Sequence[int] = PERCENTILES) -> dict[str, float] | None:
    """Mean, median and percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(1000 * value for value in seconds)
    figures = {"mean": statistics.fmean(ordered), "median": statistics.median(ordered)}
    figures |= {f"p{percent}": percentile(ordered, percent) for percent in percentiles}
    figures |= {"max": ordered[-1]}
    return {name: round(value, 3) for name, value in figures.items()}
