"""Steps of decoding as captured graphs: one launch instead of hundreds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from octavo.device.base import Device
from octavo.ops.step import PlannedArrays
from octavo.worker.input_batch import HostBatch, InputBatch, RowTensors

logger = logging.getLogger("octavo.worker")

#: Beyond, launching takes less than the step itself.
MAX_GRAPH_SIZE = 512
#: Token 0 at position 0 of a sequence without keys, which no kernel reads or writes the cache for.
_NO_SLOT = -1


@dataclass(slots=True)
class _Graph:
    """A step of `size` rows that reads its inputs at fixed places."""

    inputs: torch.Tensor  # uint8: what is uploaded for a step
    num_uses: int = 0
    replay: Callable[[], None] | None = None
    is_refused: bool = False  # it could not be captured: its steps are launched kernel by kernel
    logits: list[torch.Tensor] = field(default_factory=list)  # [size, V], the result of the last run


class StepGraphs:
    """Replays steps in which every sequence decodes one token and samples, padded to one of a few sizes. A draft is
    several such sequences.

    A size is captured when it is needed for the second time: the first run compiles what is not compiled, and no
    start waits for sizes that never come.
    """

    def __init__(
        self,
        run: Callable[[InputBatch], torch.Tensor],
        device: Device,
        planner: Any,
        sizes: Sequence[int],
        max_blocks: int,
        num_groups: int = 1,
        free_slot: int | None = None,
        is_plain: Callable[[np.ndarray], bool] = lambda slots: True,
    ) -> None:
        """`run` launches a step and returns its logits, always at the same place for the same number of rows.
        `planner`: the table's attention planner. `max_blocks`: of one sequence in one of
        `num_groups` groups of layers. `free_slot`: where layers have a state, a slot that is no
        request's. `is_plain`: whether a step with these adapters may be captured."""
        self._run = run
        self._device = device
        self._planner = planner
        self._sizes = sorted(sizes)
        #: By size, whether there are rows with adapters, and the kind of the attention's plan.
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._free_slot = free_slot
        self._is_plain = is_plain
        #: How the last step was launched: `ModelRunnerOutput.graph`.
        self.last = ""
        self._block_tables = device.zeros((num_groups, self._sizes[-1], max_blocks), torch.int32)

    def logits(self, host: HostBatch) -> tuple[torch.Tensor, RowTensors] | None:
        """The logits of a step [B, V], and its rows until the next step; None if it is none of those that are captured.
        `last` says how it went."""
        num_seqs = len(host.slots)
        self.last = self._obstacle(host)
        if self.last:
            return None
        size = next(size for size in self._sizes if size >= num_seqs)
        arrays = self._planner.padded_arrays(host.seq_lens, size, are_apart=host.are_apart)
        if arrays is None:
            self.last = "contexts too long"
            return None
        key = size, host.adapter_slots is not None, arrays.kind
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = _Graph(self._input_buffer(host, size, arrays))
        batch, rows = self._fill(graph, host, size, arrays)
        graph.num_uses += 1
        if graph.replay is not None:
            graph.replay()
            self.last = "replayed"
        else:
            graph.logits = [self._run(batch)]
            if graph.num_uses > 1 and not graph.is_refused:
                self._capture(graph, size, batch)
            self.last = "captured" if graph.replay else "capture refused" if graph.is_refused else "size is new"
        return graph.logits[0][:num_seqs], RowTensors(*(tensor[:num_seqs] for tensor in rows))

    def _obstacle(self, host: HostBatch) -> str:
        """Why the step is none of those that are captured, in a few words; "": it may be one."""
        num_seqs = len(host.slots)
        if host.num_decodes < num_seqs:
            return "prompt"
        if len(host.logits_rows) < num_seqs:
            return "not all sample"  # in the middle of what a grammar dictated
        if host.adapter_slots is not None and not self._is_plain(host.adapter_slots):
            return "adapter of the vocabulary"
        if num_seqs > self._sizes[-1]:
            return "drafts" if len(set(host.slots.tolist())) <= self._sizes[-1] else "too many sequences"
        return ""

    def _capture(self, graph: _Graph, size: int, batch: InputBatch) -> None:
        """The run before has left its result: capturing computes nothing. A capture that fails, for want of memory or
        because of another user of the GPU, costs the launches of this size's steps and no more."""
        computed = graph.logits

        def run() -> None:
            graph.logits = [self._run(batch)]

        try:
            graph.replay = self._device.capture(run)
        except RuntimeError as error:
            graph.is_refused, graph.logits = True, computed
            logger.warning("Steps of %d sequences run without a CUDA graph: capturing failed: %s", size, error)

    def _input_buffer(self, host: HostBatch, size: int, arrays: PlannedArrays) -> torch.Tensor:
        fixed = sum(array.nbytes + 16 for array in (*self._padded(host, size), *arrays.tensors))
        num_groups, _, max_blocks = self._block_tables.shape
        return self._device.zeros((fixed + num_groups * max_blocks * size * 4,), torch.uint8)

    def _fill(self, graph: _Graph, host: HostBatch, size: int, arrays: PlannedArrays) -> tuple[InputBatch, RowTensors]:
        """Upload a step's inputs to their places. The block tables, the only input whose shape varies, come last."""
        tensors = self._device.upload(*self._padded(host, size), *arrays.tensors, host.block_tables, into=graph.inputs)
        token_ids, positions, slot_mapping, query_start_loc, seq_lens, slots, draws, *planned, tables = tensors
        state_slots = None if self._free_slot is None else planned.pop(0)
        adapter_slots = None if host.adapter_slots is None else planned.pop(0)
        self._block_tables[:, : tables.shape[1], : tables.shape[2]].copy_(tables)
        plan = self._planner.plan(arrays, planned)
        batch = InputBatch(
            token_ids,
            positions,
            slot_mapping,
            query_start_loc,
            seq_lens,
            self._block_tables[:, :size],
            plan,
            state_slots,
        )
        batch.adapter_slots = adapter_slots
        return batch, RowTensors(slots, draws)

    def _padded(self, host: HostBatch, size: int) -> tuple[np.ndarray, ...]:
        """token_ids, positions, slot_mapping, query_start_loc, seq_lens, slots and draw_positions of `size` sequences;
        where layers have states, the slots of these; and where rows have adapters, theirs."""
        arrays: tuple[np.ndarray, ...] = (
            _extended(host.token_ids, size, 0),
            _extended(host.positions, size, 0),
            _extended(host.slot_mapping, size, _NO_SLOT),
            np.arange(size + 1, dtype=np.int32),
            _extended(host.seq_lens, size, 0),
            _extended(host.rows.slots, size, 0),
            _extended(host.draw_positions, size, 0),
        )
        if self._free_slot is not None:
            arrays = (*arrays, _extended(host.slots.astype(np.int32), size, self._free_slot))
        return arrays if host.adapter_slots is None else (*arrays, _extended(host.adapter_slots, size, -1))


def _extended(array: np.ndarray, size: int, value: int) -> np.ndarray:
    """np.pad of the last axis, which takes several times as long."""
    result = np.full((*array.shape[:-1], size), value, array.dtype)
    result[..., : array.shape[-1]] = array
    return result


def ladder(largest: int) -> tuple[int, ...]:
    """A ladder on which no batch is padded by more than a quarter, beyond the smallest."""
    sizes = [size for size in (1, 2, 4, 8, 12, 16, 24, 32, 48, 64) if size < largest]
    sizes += [size for size in range(80, 256, 16) if size < largest]
    sizes += [size for size in range(256, largest, 32) if size < largest]
    return (*sizes, largest)
