"""Captured steps where capturing is not to be had."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from octavo.ops.step import PlannedArrays
from octavo.worker.graphs import StepGraphs
from octavo.worker.input_batch import HostBatch, InputBatch, Rows
from support.interpreted_device import InterpretedDevice


class BusyDevice(InterpretedDevice):
    """Runs what it is to capture, and fails behind it, as a GPU whose memory is at its end."""

    num_captures = 0

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.num_captures += 1
        run()
        raise RuntimeError("CUDA error: out of memory")


class Planner:
    def padded_arrays(self, seq_lens: np.ndarray, size: int, *, are_apart: bool) -> PlannedArrays:
        return PlannedArrays(kind=(are_apart,))

    def plan(self, arrays: PlannedArrays, tensors: list[torch.Tensor]) -> None: ...


def decoding(token_id: int) -> HostBatch:
    """One sequence that decodes."""
    one = np.ones(1, np.int64)
    return HostBatch(
        slots=0 * one, num_decodes=1, num_scheduled=one, token_ids=np.array([token_id], np.int32),
        positions=np.array([4], np.int32), slot_mapping=np.array([[4]]), query_start_loc=np.array([0, 1], np.int32),
        seq_lens=np.array([5], np.int32), block_tables=np.ones((1, 1, 1), np.int32), logits_rows=0 * one,
        rows=Rows(0 * one, 5 * one, []), draw_positions=one,
    )  # fmt: skip


def test_a_capture_that_fails_costs_its_size_the_graph_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    device = BusyDevice()
    is_capturing: list[bool] = []

    def run(batch: InputBatch) -> torch.Tensor:
        # A capture computes nothing: what it leaves is no result.
        return torch.full((1, 3), torch.nan if is_capturing else float(batch.token_ids[0]))

    plain = device.capture

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        is_capturing.append(True)
        try:
            return plain(step)
        finally:
            is_capturing.clear()

    device.capture = capture  # type: ignore[method-assign]
    graphs = StepGraphs(run, device, Planner(), (1,), max_blocks=2)
    with caplog.at_level(logging.WARNING):
        for token_id in range(5):
            found = graphs.logits(decoding(token_id))
            assert found is not None and found[0].tolist() == [[token_id] * 3]
            assert [tensor.tolist() for tensor in found[1]] == [[0], [1]]
            assert graphs.last == ("capture refused" if token_id else "size is new")
    assert device.num_captures == 1
    assert [record.getMessage() for record in caplog.records] == [
        "Steps of 1 sequences run without a CUDA graph: capturing failed: CUDA error: out of memory"
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_decodes": 0}, "prompt"),
        ({"logits_rows": np.zeros(0, np.int64)}, "not all sample"),
        ({"slots": np.array([0, 1]), "num_decodes": 2, "logits_rows": np.array([0, 1])}, "too many sequences"),
        ({"slots": np.array([1, 1]), "num_decodes": 2, "logits_rows": np.array([0, 1])}, "drafts"),
        ({"seq_lens": np.array([9], np.int32)}, "contexts too long"),
    ],
)
def test_a_step_that_is_not_captured_says_why(changes: dict[str, Any], reason: str) -> None:
    class ShortPlanner(Planner):
        def padded_arrays(self, seq_lens: np.ndarray, size: int, *, are_apart: bool) -> PlannedArrays | None:
            return None if seq_lens.max() > 8 else super().padded_arrays(seq_lens, size, are_apart=are_apart)

    graphs = StepGraphs(lambda batch: torch.zeros(1, 3), InterpretedDevice(), ShortPlanner(), (1,), max_blocks=2)
    assert graphs.logits(dataclasses.replace(decoding(1), **changes)) is None
    assert graphs.last == reason
    ways = []
    for _ in range(3):
        assert graphs.logits(decoding(1)) is not None
        ways.append(graphs.last)
    assert ways == ["size is new", "captured", "replayed"]


def test_steps_whose_sequences_see_each_other_have_graphs_of_their_own() -> None:
    """Two rows of one request: the second sees the first one's key, which is written in the same step."""
    graphs = StepGraphs(lambda batch: torch.zeros(2, 3), InterpretedDevice(), Planner(), (2,), max_blocks=2)
    names = ("num_scheduled", "token_ids", "positions", "slot_mapping", "seq_lens", "draw_positions")
    step = dataclasses.replace(
        decoding(1), **{name: np.repeat(getattr(decoding(1), name), 2, axis=-1) for name in names},
        slots=np.array([0, 1]), num_decodes=2, query_start_loc=np.arange(3, dtype=np.int32),
        block_tables=np.ones((1, 2, 1), np.int32), logits_rows=np.array([0, 1]),
        rows=Rows(np.array([0, 1]), 5 * np.ones(2, np.int64), []),
    )  # fmt: skip
    assert step.are_apart
    ways = []
    for slots in ([0, 1], [0, 1], [1, 1], [0, 1], [1, 1], [1, 1]):
        assert graphs.logits(dataclasses.replace(step, slots=np.array(slots))) is not None
        ways.append(graphs.last)
    assert ways == ["size is new", "captured", "size is new", "replayed", "captured", "replayed"]
