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
from octavo.worker.graphs import StepGraphs, ladder, token_ladder
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
    def padded_arrays(
        self, seq_lens: np.ndarray, query_start_loc: np.ndarray, num_decodes: int, **most: int
    ) -> PlannedArrays | None:
        return PlannedArrays()

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

    def run(batch: InputBatch, needed: torch.Tensor | None) -> torch.Tensor:
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
        ({"logits_rows": np.zeros(0, np.int64)}, "prompt"),  # in the middle of what a grammar dictated
        ({"slots": np.array([0, 1]), "num_decodes": 2, "logits_rows": np.array([0, 1])}, "too many sequences"),
        ({"slots": np.array([1, 1]), "num_decodes": 2, "logits_rows": np.array([0, 1])}, "drafts"),
        ({"seq_lens": np.array([9], np.int32)}, "contexts too long"),
        ({"virtual": (np.zeros(1, np.int64),) * 3}, "prompt adapter"),
        ({"muted_rows": np.zeros(1, np.int64)}, "text without pictures"),
    ],
)
def test_a_step_that_is_not_captured_says_why(changes: dict[str, Any], reason: str) -> None:
    class ShortPlanner(Planner):
        def padded_arrays(self, seq_lens: np.ndarray, *args: Any, **most: int) -> PlannedArrays | None:
            return None if seq_lens.max() > 8 else super().padded_arrays(seq_lens, *args, **most)

    graphs = StepGraphs(lambda *args: torch.zeros(1, 3), InterpretedDevice(), ShortPlanner(), (1,), max_blocks=2)
    assert graphs.logits(dataclasses.replace(decoding(1), **changes)) is None
    assert graphs.last == reason
    ways = []
    for _ in range(3):
        assert graphs.logits(decoding(1)) is not None
        ways.append(graphs.last)
    assert ways == ["size is new", "captured", "replayed"]


def mixed(num_prompt_tokens: int) -> HostBatch:
    """Slot 3 decodes, slot 5 has so many tokens of its prompt and samples, slot 4 two that do not."""
    counts = np.array([1, num_prompt_tokens, 2])
    starts = np.array([0, *np.cumsum(counts)], np.int32)
    num_tokens, rows = int(starts[-1]), np.array([0, num_prompt_tokens], np.int64)
    return HostBatch(
        slots=np.array([3, 5, 4]), num_decodes=1, num_scheduled=counts,
        token_ids=np.arange(1, num_tokens + 1, dtype=np.int32), positions=np.full(num_tokens, 4, np.int32),
        slot_mapping=np.full((1, num_tokens), 4), query_start_loc=starts, seq_lens=np.array([5, 9, 8], np.int32),
        block_tables=np.full((1, 3, 1), 7, np.int32), logits_rows=rows,
        rows=Rows(np.array([3, 5]), np.array([5, 9]), []), draw_positions=np.array([2, 0]),
    )  # fmt: skip


def test_steps_with_prompts_are_padded_to_a_number_of_tokens_and_of_sequences() -> None:
    seen: list[dict[str, list[int]]] = []

    def run(batch: InputBatch, needed: torch.Tensor | None) -> torch.Tensor:
        assert needed is not None
        names = ("token_ids", "positions", "slot_mapping", "query_start_loc", "seq_lens", "state_slots")
        seen.append({name: getattr(batch, name).tolist() for name in names})
        return batch.token_ids[needed, None].float()

    graphs = StepGraphs(
        run, InterpretedDevice(), Planner(), (1, 4, 16), max_blocks=2, free_slot=20, token_sizes=(6, 12)
    )
    ways = []
    for num_prompt_tokens in (5, 9, 4, 3):
        found = graphs.logits(mixed(num_prompt_tokens))
        assert found is not None
        logits, rows = found
        # The rows that sample are the step's, also of one that is replayed.
        assert logits.tolist() == [[1.0], [1.0 + num_prompt_tokens]]
        assert rows.slots.tolist() == [3, 5] and rows.draw_positions.tolist() == [2, 0]
        ways.append(graphs.last)
    assert ways == ["size is new", "captured", "replayed", "size is new"]
    assert seen[0] == {
        "token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0],
        "positions": [4] * 8 + [0] * 4,
        "slot_mapping": [[4] * 8 + [-1] * 4],
        "query_start_loc": [0, 1, 6, 8, *[8] * 5],  # tokens of no sequence, and sequences without tokens
        "seq_lens": [5, 9, 8, *[0] * 5],
        "state_slots": [3, 5, 4, *[20] * 5],
    }
    assert graphs.logits(mixed(10)) is None and graphs.last == "prompt"
    assert graphs.num_with_prompts == 1


def test_a_step_with_prompts_that_may_not_be_captured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacles = ["prompt with media", ""]
    graphs = StepGraphs(
        lambda batch, needed: torch.zeros(4, 3), InterpretedDevice(), Planner(), (4,), max_blocks=2, token_sizes=(16,),
        prompt_obstacle=lambda host: obstacles.pop(0) if obstacles else "",
    )  # fmt: skip
    monkeypatch.setattr("octavo.worker.graphs._MOST_GRAPHS_WITH_PROMPTS", 0)
    ways = []
    for _ in range(3):
        graphs.logits(mixed(3))
        ways.append(graphs.last)
    assert ways == ["prompt with media", "size is new", "capture refused"]


def test_sizes_of_steps() -> None:
    for largest in (3, 48, 100, 8192):
        for sizes in (ladder(largest), token_ladder(largest)):
            assert list(sizes) == sorted(set(sizes)) and sizes[-1] == min(largest, sizes[-1])
    assert token_ladder(48) == (16, 32, 48) and token_ladder(8192)[-1] == 768
