"""Positions of three parts, as Qwen2-VL counts them."""

from __future__ import annotations

import numpy as np

from octavo.wire.step import MediaPlace
from octavo.worker.position_parts import position_parts


def test_a_picture_counts_by_line_and_column_and_text_goes_on_behind_its_longer_side() -> None:
    found = position_parts([MediaPlace(b"a", ((2, 6),), (1, 2, 3)), MediaPlace(b"b", ((9, 4),), (2, 1, 2))])
    assert found is not None
    assert found.of(np.arange(15)).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 7, 7, 8, 9],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 6, 8, 9],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 6, 7, 8, 9],
    ]
    assert found.of(np.array([1000])).tolist() == [[995]] * 3 and found.offset == -5


def test_rows_without_a_grid_are_counted_like_text() -> None:
    assert position_parts([MediaPlace(b"a", ((2, 6),))]) is None
    assert position_parts([]) is None
