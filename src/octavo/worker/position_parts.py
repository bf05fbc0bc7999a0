"""Positions of three parts (time, line, column), where media stand in a prompt.

A text's token has the same number in all three. The rows of a picture count on from the text before it, each part by
itself: a picture of 2 x 3 rows behind five tokens is

    time    0 1 2 3 4 | 5 5 5 5 5 5 | 8 ...
    line    0 1 2 3 4 | 5 5 5 6 6 6 | 8 ...
    column  0 1 2 3 4 | 5 6 7 5 6 7 | 8 ...

and the text behind it goes on from its longer side, also behind a video, whose rows are told apart in time by
steps that may be of any length. So positions fall behind the number of tokens, for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from octavo.wire.step import MediaPlace


class PositionParts(NamedTuple):
    """Of a request."""

    parts: np.ndarray  # int32 [3, tokens up to the end of the last picture]
    offset: int  # of all tokens behind: their position less their number

    def of(self, indices: np.ndarray) -> np.ndarray:
        """int32 [3, n]: of the tokens with these numbers, int64 [n]."""
        count = self.parts.shape[1]
        inside = self.parts[:, np.minimum(indices, count - 1)]
        found: np.ndarray = np.where(indices < count, inside, (indices + self.offset).astype(np.int32)[None])
        return found


def position_parts(media: Sequence[MediaPlace]) -> PositionParts | None:
    """None: nothing in the prompt has a grid."""
    runs: list[np.ndarray] = []
    num_tokens = position = 0
    for place in media:
        if place.grid is None:
            continue
        times, lines, columns = place.grid
        assert len(place.spans) in (1, times), "a grid has one span, or one for each of its times"
        times //= len(place.spans)
        for start, length in place.spans:
            assert length == times * lines * columns, "a grid has a token for each of its rows"
            runs.append(np.tile(np.arange(position, position + start - num_tokens), (3, 1)))
            position += start - num_tokens
            own = np.indices((times, lines, columns)).reshape(3, -1)
            own[0] = own[0].astype(np.float32) * np.float32(place.time_step)  # rounded down, as the reference does
            runs.append(position + own)
            position += max(lines, columns)
            num_tokens = start + length
    if not runs:
        return None
    return PositionParts(np.concatenate(runs, 1).astype(np.int32), position - num_tokens)
