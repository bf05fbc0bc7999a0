"""Rows of media, however many pieces of a tower's programs a step runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.harness import Engine
from octavo.base.media import MediaItem
from octavo.ops.pieces import Piece
from octavo.wire.step import MediaPart, SchedulerOutput
from octavo.worker import encoder as encoder_module
from octavo.worker.media import MediaEncoder, media_bytes

#: At once, so that an item is several groups of sequences.
_MOST = 16


def check_pieces(engine: Engine, items: Sequence[MediaItem]) -> None:
    runner: Any = engine.worker._runner
    made = runner._model, runner._ops, runner._device, _MOST
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_module, "pieces", lambda program, cut: [Piece(program)])
        whole = MediaEncoder(*made)
    encoder = MediaEncoder(*made)
    other = items[-1]
    most = media_bytes(runner._model.definition, runner._ops, max(_MOST, *(item.size for item in items)), 0)
    for item in items:
        expected = _rows(whole, item, [])
        for stride in (1, 7, item.size // 2 + 1, item.size):
            assert torch.equal(_rows(encoder, item, range(stride, item.size, stride)), expected), stride
        _apply(encoder, MediaPart(b"given up", other, 1))
        assert _buffers(encoder) <= most
        encoder.apply(SchedulerOutput([], [], {}, [], 0, 0, media_dropped=[b"given up"]))
        assert torch.equal(_rows(encoder, item, [item.size // 2]), expected)


def _buffers(encoder: MediaEncoder) -> int:
    """Bytes that are taken while it stands still."""
    stages = [runner for _, runner, _, _ in encoder._stages]
    if encoder._sounds is not None:
        stages = [encoder._sounds._first, encoder._sounds._layers, encoder._sounds._head]
    return sum(max((space.num_bytes for space in each._spaces), default=0) for each in stages)


def _rows(encoder: MediaEncoder, item: MediaItem, ends: Sequence[int]) -> torch.Tensor:
    given: MediaItem | None = item
    for end in [*ends, None]:
        _apply(encoder, MediaPart(item.digest, given, end))
        given = None
    return encoder._rows[item.digest]


def _apply(encoder: MediaEncoder, part: MediaPart) -> None:
    encoder.apply(SchedulerOutput([], [], {}, [], 0, 0, media_encoded=[part]))
