"""Steps as captured graphs: one launch instead of hundreds."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from octavo.device.base import Device
from octavo.ops.step import PlannedArrays
from octavo.worker.input_batch import HostBatch, InputBatch, RowTensors

logger = logging.getLogger("octavo.worker")

#: Beyond, launching takes less than the step itself.
MAX_GRAPH_SIZE = 512
#: Sequences to which steps with parts of prompts are padded: wider apart than those of decoding, since each pair of one
#: such number and one of tokens has a graph.
_SEQS_WITH_PROMPTS = (8, 32, 64, 128, 192, 256, 384)
#: Tokens of such steps, at most.
_MOST_TOKENS = 768
#: Graphs of such steps, at most: each takes memory of the GPU, and most loads need a few dozen.
_MOST_GRAPHS_WITH_PROMPTS = 64
#: Token 0 at position 0 of a sequence without keys, which no kernel reads or writes the cache for.
_NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a captured step is padded to."""

    num_seqs: int
    num_tokens: int
    has_prompts: bool  # sequences with several tokens, or that do not sample
    has_adapters: bool

    def __str__(self) -> str:
        tokens = f" with {self.num_tokens} tokens" if self.has_prompts else ""
        return f"{self.num_seqs} sequences{tokens}"


class EncoderShape(NamedTuple):
    """What a step sees of encoders: `num_groups` of layers, blocks of one sequence, the attention planner of it."""

    planner: Any
    num_groups: int
    max_blocks: int


@dataclass(slots=True)
class _Graph:
    """A step of one shape that reads its inputs at fixed places."""

    inputs: torch.Tensor  # uint8: what is uploaded for a step, at its beginning
    num_uses: int = 0
    replay: Callable[[], None] | None = None
    is_refused: bool = False  # it could not be captured: its steps are launched kernel by kernel
    logits: list[torch.Tensor] = field(default_factory=list)  # [rows, V], the result of the last run


class StepGraphs:
    """Replays steps, padded to one of a few shapes: those in which every sequence decodes one token and samples, to a
    number of sequences (a draft is several such sequences); those with parts of prompts, to a number of tokens and a
    number of sequences, whose rows that sample are chosen by the step's inputs.

    A shape is captured when it is needed for the second time: the first run compiles what is not compiled, and no
    start waits for shapes that never come.
    """

    def __init__(
        self,
        run: Callable[[InputBatch, torch.Tensor | None], torch.Tensor],
        device: Device,
        planner: Any,
        sizes: Sequence[int],
        max_blocks: int,
        num_groups: int = 1,
        free_slot: int | None = None,
        is_plain: Callable[[np.ndarray], bool] = lambda slots: True,
        token_sizes: Sequence[int] = (),
        prompt_obstacle: Callable[[HostBatch], str] = lambda host: "",
        encoder: EncoderShape | None = None,
    ) -> None:
        """`run` launches a step and returns its logits, of all tokens or of the rows int64 [S] that are wanted, always
        at the same place for the same number of rows. `planner`: the table's attention planner. `sizes`: of steps of
        decoding. `max_blocks`: of one sequence in one of `num_groups` groups of layers. `free_slot`: where layers have
        a state, a slot that is no request's. `is_plain`: whether a step with these adapters may be captured.
        `token_sizes`: of steps with parts of prompts. `prompt_obstacle`: why such a step may not be captured; "": it
        may. `encoder`: where layers see one."""
        self._run = run
        self._device = device
        self._planner = planner
        self._sizes = sorted(sizes)
        self._token_sizes = sorted(token_sizes)
        largest = self._sizes[-1]
        self._seq_sizes = [*(size for size in _SEQS_WITH_PROMPTS if size < largest), largest]
        self._graphs: dict[_Shape, _Graph] = {}
        self._free_slot = free_slot
        self._is_plain = is_plain
        self._prompt_obstacle = prompt_obstacle
        #: How the last step was launched: `ModelRunnerOutput.graph`.
        self.last = ""
        self._block_tables = device.zeros((num_groups, largest, max_blocks), torch.int32)
        self._encoder = encoder
        if encoder is not None:
            self._encoder_tables = device.zeros((encoder.num_groups, largest, encoder.max_blocks), torch.int32)
        #: Of all shapes, for steps are uploaded one after the other. A graph keeps what was too small for later ones.
        self._inputs = device.zeros((0,), torch.uint8)

    def logits(self, host: HostBatch) -> tuple[torch.Tensor, RowTensors] | None:
        """The logits of a step [S, V], and its rows until the next step; None if it is none of those that are captured.
        `last` says how it went."""
        has_prompts = host.num_decodes < len(host.slots) or len(host.logits_rows) < len(host.slots)
        self.last = self._obstacle(host, has_prompts)
        if self.last:
            return None
        shape = self._shape(host, has_prompts)
        planned = self._planned(host, shape)
        if planned is None:
            self.last = "prompt" if has_prompts else "contexts too long"
            return None
        graph = self._graphs.get(shape)
        if graph is None:
            graph = self._graphs[shape] = _Graph(self._input_buffer(host, shape, planned))
        batch, rows, needed = self._fill(graph, host, shape, planned)
        graph.num_uses += 1
        if graph.replay is not None:
            graph.replay()
            self.last = "replayed"
        else:
            graph.logits = [self._run(batch, needed)]
            has_room = not has_prompts or self.num_with_prompts < _MOST_GRAPHS_WITH_PROMPTS
            if graph.num_uses > 1 and not graph.is_refused and has_room:
                self._capture(graph, shape, batch, needed)
            self.last = "captured" if graph.replay else "capture refused" if graph.num_uses > 1 else "size is new"
        num_rows = len(host.logits_rows)
        return graph.logits[0][:num_rows], RowTensors(*(tensor[:num_rows] for tensor in rows))

    def _obstacle(self, host: HostBatch, has_prompts: bool) -> str:
        """Why the step is none of those that are captured, in a few words; "": it may be one."""
        if has_prompts and (not self._token_sizes or len(host.token_ids) > self._token_sizes[-1]):
            return "prompt"
        if host.muted_rows is not None:
            return "text without pictures"
        if host.virtual is not None:
            return "prompt adapter"
        if host.adapter_slots is not None and not self._is_plain(host.adapter_slots):
            return "adapter of the vocabulary"
        if _width(host) > self._sizes[-1]:
            return "drafts" if len(set(host.slots.tolist())) <= self._sizes[-1] else "too many sequences"
        return self._prompt_obstacle(host) if has_prompts else ""

    def _shape(self, host: HostBatch, has_prompts: bool) -> _Shape:
        num_seqs = _at_least(_width(host), self._seq_sizes if has_prompts else self._sizes)
        num_tokens = _at_least(len(host.token_ids), self._token_sizes) if has_prompts else num_seqs
        return _Shape(num_seqs, num_tokens, has_prompts, host.adapter_slots is not None)

    def _planned(self, host: HostBatch, shape: _Shape) -> list[PlannedArrays] | None:
        """What attention plans of the tokens, and of what they see of an encoder."""
        seen = [(self._planner, host.seq_lens)]
        if self._encoder is not None:
            assert host.encoder_lens is not None
            seen.append((self._encoder.planner, host.encoder_lens))
        most = {"num_seqs": shape.num_seqs, "num_prompt_tokens": shape.num_tokens if shape.has_prompts else 0}
        found = [planner.padded_arrays(lens, host.query_start_loc, host.num_decodes, **most) for planner, lens in seen]
        return None if None in found else found

    @property
    def num_with_prompts(self) -> int:
        """Shapes with parts of prompts that were captured."""
        return sum(shape.has_prompts and graph.replay is not None for shape, graph in self._graphs.items())

    def _capture(self, graph: _Graph, shape: _Shape, batch: InputBatch, needed: torch.Tensor | None) -> None:
        """The run before has left its result: capturing computes nothing. A capture that fails, for want of memory or
        because of another user of the GPU, costs the launches of this shape's steps and no more."""
        computed = graph.logits

        def run() -> None:
            graph.logits = [self._run(batch, needed)]

        try:
            graph.replay = self._device.capture(run)
        except RuntimeError as error:
            graph.is_refused, graph.logits = True, computed
            logger.warning("Steps of %s run without a CUDA graph: capturing failed: %s", shape, error)

    def _input_buffer(self, host: HostBatch, shape: _Shape, planned: Sequence[PlannedArrays]) -> torch.Tensor:
        arrays = [*self._padded(host, shape), *(array for each in planned for array in each.tensors)]
        ids_per_seq = self._block_tables.shape[0] * self._block_tables.shape[2]
        if self._encoder is not None:
            ids_per_seq += self._encoder.num_groups * self._encoder.max_blocks
        num_bytes = sum(array.nbytes + 16 for array in arrays) + ids_per_seq * shape.num_seqs * 4 + 32
        if num_bytes > len(self._inputs):
            self._inputs = self._device.zeros((max(num_bytes, 2 * len(self._inputs)),), torch.uint8)
        return self._inputs

    def _fill(
        self, graph: _Graph, host: HostBatch, shape: _Shape, planned: Sequence[PlannedArrays]
    ) -> tuple[InputBatch, RowTensors, torch.Tensor | None]:
        """Upload a step's inputs to their places; the last result: which rows are wanted, int64 [num_seqs], None: all.
        Block tables, the only inputs whose shapes vary, come last."""
        tables = [host.block_tables] if host.encoder_tables is None else [host.block_tables, host.encoder_tables]
        fixed, plans = self._padded(host, shape), [each.tensors for each in planned]
        tensors = self._device.upload(*fixed, *chain(*plans), *tables, into=graph.inputs)
        given, others = tensors[: len(fixed)], tensors[len(fixed) :]
        token_ids, positions, slot_mapping, query_start_loc, seq_lens, slots, draws, *more = given
        needed = more.pop(0) if shape.has_prompts else None
        state_slots = None if self._free_slot is None else more.pop(0)
        adapter_slots = more.pop(0) if shape.has_adapters else None
        _place(self._block_tables, others[-len(tables)])
        plan = self._planner.plan(planned[0], others[: len(plans[0])])
        batch = InputBatch(
            token_ids,
            positions,
            slot_mapping,
            query_start_loc,
            seq_lens,
            self._block_tables[:, : shape.num_seqs],
            plan,
            state_slots,
        )
        batch.adapter_slots = adapter_slots
        if self._encoder is not None:
            _place(self._encoder_tables, others[-1])
            plan = self._encoder.planner.plan(planned[1], others[len(plans[0]) : -len(tables)])
            batch.add_encoder(more.pop(0), self._encoder_tables[:, : shape.num_seqs], plan)
        return batch, RowTensors(slots, draws), needed

    def _padded(self, host: HostBatch, shape: _Shape) -> tuple[np.ndarray, ...]:
        """token_ids, positions, slot_mapping, query_start_loc, seq_lens, slots and draw_positions, filled up; with
        prompts, the rows that sample; where layers have states, the slots of these; where rows have adapters, theirs;
        where layers see an encoder, the rows of each sequence's."""
        num_seqs, num_tokens = shape.num_seqs, shape.num_tokens
        if shape.has_prompts:  # tokens of no sequence, and sequences without tokens
            query_start_loc = _extended(host.query_start_loc, num_seqs + 1, len(host.token_ids))
        else:
            query_start_loc = np.arange(num_seqs + 1, dtype=np.int32)
        arrays: tuple[np.ndarray, ...] = (
            _extended(host.token_ids, num_tokens, 0),
            _extended(host.positions, num_tokens, 0),
            _extended(host.slot_mapping, num_tokens, _NO_SLOT),
            query_start_loc,
            _extended(host.seq_lens, num_seqs, 0),
            _extended(host.rows.slots, num_seqs, 0),
            _extended(host.draw_positions, num_seqs, 0),
        )
        if shape.has_prompts:
            arrays = (*arrays, _extended(host.logits_rows, num_seqs, 0))
        if self._free_slot is not None:
            arrays = (*arrays, _extended(host.slots.astype(np.int32), num_seqs, self._free_slot))
        if host.adapter_slots is not None:
            arrays = (*arrays, _extended(host.adapter_slots, num_tokens, -1))
        return arrays if host.encoder_lens is None else (*arrays, _extended(host.encoder_lens, num_seqs, 0))


def _place(target: torch.Tensor, tables: torch.Tensor) -> None:
    target[:, : tables.shape[1], : tables.shape[2]].copy_(tables)


def _width(host: HostBatch) -> int:
    """Sequences or rows, whatever are more: where known tokens stand before a draft, a sequence has several rows."""
    return max(len(host.slots), len(host.logits_rows))


def _at_least(number: int, sizes: Sequence[int]) -> int:
    return sizes[bisect_left(sizes, number)]


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


def token_ladder(largest: int) -> tuple[int, ...]:
    """Numbers of tokens of steps with parts of prompts. Some tokens more cost nothing while reading the weights takes
    longer than computing with them, and little beyond."""
    largest = min(largest, _MOST_TOKENS)
    sizes = [*range(16, 64, 16), *range(64, 512, 32), *range(512, _MOST_TOKENS, 64)]
    return (*(size for size in sizes if size < largest), largest)
