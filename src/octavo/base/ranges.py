"""Bounds of the numbers in a request, and what an error says of a number that is beyond them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from octavo.base.errors import InvalidRequest

#: Seeds are signed 64-bit numbers; -1 means "no seed".
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class Range(NamedTuple):
    """Bounds of a number, which belong to the range; None: none."""

    low: float | None = None
    high: float | None = None

    def words(self) -> str:
        low, high = self
        if low is not None and high is not None:
            return f"in [{low}, {high}]"
        return f"at least {low}" if low is not None else f"at most {high}"


#: The ranges of the numbers in `SamplingParams`, without those of a server's settings and of other fields. The check
#: reads them, and so does the API's own description.
RANGES: Final[Mapping[str, Range]] = {
    "n": Range(1),
    "best_of": Range(1),
    "temperature": Range(0.0, 2.0),
    "top_p": Range(0.0, 1.0),
    "top_k": Range(-1),
    "min_p": Range(0.0, 1.0),
    "seed": Range(_INT64_MIN, _INT64_MAX),
    "presence_penalty": Range(-2.0, 2.0),
    "frequency_penalty": Range(-2.0, 2.0),
    "repetition_penalty": Range(1e-6, 1e6),
    "repeat_last_n": Range(-1, 2**31 - 1),
    "typical_p": Range(0.0, 1.0),
    "top_n_sigma": Range(),
    "dynatemp_range": Range(0.0, 2.0),
    "dynatemp_exponent": Range(0.0, 100.0),
    "xtc_probability": Range(0.0, 1.0),
    "xtc_threshold": Range(0.0, 1.0),
    "dry_multiplier": Range(0.0, 1e6),
    "dry_base": Range(1.0, 1e6),
    "dry_allowed_length": Range(1, 1 << 20),
    "dry_penalty_last_n": Range(-1, 2**31 - 1),
    "mirostat": Range(0, 2),
    "mirostat_tau": Range(0.0, 1e3),
    "mirostat_eta": Range(0.0, 1.0),
    "max_tokens": Range(1),
    "min_tokens": Range(0),
}


def check_number(name: str, value: float, bounds: Range) -> None:
    # NaN passes every comparison below, so finiteness is checked first.
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest(f"`{name}` must be a finite number.", name)
    low, high = bounds
    if (low is not None and value < low) or (high is not None and value > high):
        raise InvalidRequest(f"`{name}` must be {bounds.words()}, got {clip_number(value)}.", name)


def check_token_id(name: str, token_id: int, vocab_size: int) -> None:
    if not 0 <= token_id < vocab_size:
        raise InvalidRequest(f"`{name}` contains token id {clip_number(token_id)}, outside 0..{vocab_size - 1}.", name)


def clip_number(value: float) -> str:
    """`value` for a message: a program's integers have any number of digits."""
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
