"""Runs programs that keep nothing between steps: whole sequences of any lengths, which are forgotten behind the step.

sequences   | a a a a a | b b | c c c c |             rows T, one behind the other
scratch     | a a a a | a . . . | b b . . | c c c c |  blocks of one layer, which the next layer overwrites
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from octavo.device.base import Device
from octavo.ops.operands import Cache
from octavo.ops.operations import GivenRows
from octavo.ops.pieces import Cut, Piece, pieces
from octavo.ops.program import Program
from octavo.ops.run import Runner
from octavo.ops.step import attention_planners
from octavo.ops.table import Ops, cache_shapes
from octavo.ops.workspace import Workspace, room_for
from octavo.worker.input_batch import InputBatch

#: Rows of a block of the scratch cache. A sequence begins with a block of its own.
_BLOCK_SIZE: Final = 64


_T = TypeVar("_T")
#: Work that stands still between its pieces, and what comes of it.
Pieces = Generator[None, None, _T]


def finished(steps: Generator[Any, None, _T]) -> _T:
    """What comes of work when all of it is done at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _T = end.value
            return result


def progress(steps: Pieces[_T], start: int, end: int, num_pieces: int) -> Generator[int, None, _T]:
    """How far work on what is from `start` to `end` has come, wherever it stands still."""
    num_done = 0
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            made: _T = stop.value
            return made
        num_done += 1
        yield start + (end - start) * num_done // num_pieces


@dataclass(frozen=True)
class Written:
    """Keys and values of sequences, as a program has written them."""

    caches: list[tuple[Tensor, ...]]
    counts: np.ndarray  # int32 [S]: rows of each sequence
    lens: Tensor  # the same on the device
    block_tables: Tensor  # int32 [1, S, blocks]


class EncoderRunner:
    """One program with its weights; not to be used by two threads at once. Buffers grow when a step is larger than any
    before, and a row's result depends neither on the sequences beside its own nor on their order."""

    def __init__(
        self, program: Program, ops: Ops, device: Device, weights: Mapping[str, Any], *, cut: Cut | None = None
    ) -> None:
        """`weights`: what was packed, by the names of the program's weights. `cut`: it is run piece by piece; what
        is between two pieces lies in its buffers. No rows are `needed` then if all layers are cut."""
        #: Caches of its own, in front of those that it sees as another's.
        self._own_caches = [cache for cache in program.caches if not (cache.of_encoder and cache.group)]
        assert all(cache.group == 0 for cache in self._own_caches)
        assert list(program.caches[: len(self._own_caches)]) == self._own_caches
        self._ops = ops
        self._device = device
        made = [Piece(program)] if cut is None else pieces(program, cut)
        #: Of each piece its runner, and the numbers of the caches that it uses.
        self._pieces: list[tuple[Runner, tuple[int, ...]]] = [
            (ops.program_runner(ops, each.program, weights), each.caches) for each in made
        ]
        shapes = tuple(dict.fromkeys(cache.heads for cache in program.caches))
        self._written: Written | None = None
        self._planner = attention_planners(ops.attention_planner, shapes, device.torch_device, ops.activation_dtype)
        self._spaces: list[Workspace] = []  # of the pieces; they share one memory
        self._capacity = 0
        self._scratch: list[tuple[Tensor, ...]] = []
        self._num_blocks = 0

    @property
    def num_pieces(self) -> int:
        return len(self._pieces)

    def run(self, lens: Sequence[int], **given: Any) -> Tensor:
        """All of `steps` at once."""
        return finished(self.steps(lens, **given))

    def steps(
        self,
        lens: Sequence[int],
        *,
        token_ids: np.ndarray | None = None,
        rows: Tensor | None = None,
        key_ends: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        needed: np.ndarray | None = None,
        seen: Written | None = None,
        parts: Sequence[tuple[int, int]] | None = None,
    ) -> Pieces[Tensor]:
        """Stands still between the pieces, in which nothing else may be run with this one.

        Encode sequences of `lens` rows, T in all, each at least one.

        Either `token_ids` int32 [T], on the host, or `rows` [T, width] of the table's type, on the device. `key_ends`
        int32 [T]: see `reference_attention.attention`. `positions` int32 [T], or [parts, T]: of the rows, where they
        are not 0, 1, ... of each sequence. `seen`: of a program that sees another's rows, whose sequences are as many.
        `parts`: (number, keys) of the rows of the only sequence, in order: so many see so many of its first keys, which
        may be fewer than those before see, unlike `key_ends`; layers are not causal. Returns the program's output of
        the table's type, [T, width] or that of the rows `needed`, int64 in rising order: a view, valid until the next
        run.
        """
        counts = np.array(lens, np.int32)
        total = int(counts.sum())
        assert len(lens) and counts.min() > 0 and (token_ids is None) != (rows is None)
        assert parts is None or (len(lens) == 1 and sum(number for number, _ in parts) == total)
        ids = np.zeros(total, np.int32) if token_ids is None else token_ids
        batch = self._batch(counts, ids, key_ends, [part for part in parts or () if part[0]])
        batch.input_rows = rows
        if not self._own_caches:
            batch.cache_groups = []
        if seen is not None:
            self._see(batch, seen, counts)
        if positions is not None:
            (given,) = self._device.upload(positions)
            if positions.ndim > 1:
                batch.position_parts, batch.positions = given, given[0]
            else:
                batch.positions = given
        kept = None if needed is None else self._device.upload(needed)[0]
        self.reserve(lens)
        groups = batch.cache_groups
        for number, (runner, numbers) in enumerate(self._pieces):
            is_last = number == len(self._pieces) - 1
            if len(self._pieces) == 1:
                caches = self._scratch if seen is None else [*self._scratch, *seen.caches]
            else:
                caches = [self._scratch[index] for index in numbers]
                batch.cache_groups = groups if caches else []
            output = runner.run(self._spaces[number], batch, caches, kept if is_last else None)
            if not is_last:
                batch.input_rows = self._handed_on(output, number + 1)
                yield
        self._written = Written(self._scratch, counts, batch.seq_lens, batch.block_tables)
        return output

    def _handed_on(self, output: Tensor, number: int) -> Tensor:
        """What one piece gives to the next, whose buffers share its memory."""
        program = self._pieces[number][0].program
        given = next(op.out for op in program.ops if isinstance(op, GivenRows))
        # Mostly it lies already where the piece puts it, which then changes nothing.
        return output if output.data_ptr() == self._spaces[number][given].data_ptr() else output.clone()

    @property
    def written(self) -> Written:
        """What the last run has left in the caches, valid until the next."""
        assert self._written is not None, "nothing has run"
        return self._written

    def _see(self, batch: InputBatch, seen: Written, counts: np.ndarray) -> None:
        starts = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        arrays = self._planner.arrays(seen.counts, starts, 0)
        plan = self._planner.plan(arrays, self._device.upload(*arrays.tensors) if arrays.tensors else [])
        batch.add_encoder(seen.lens, seen.block_tables, plan)

    @staticmethod
    def scratch_bytes(program: Program, ops: Ops, num_rows: int, num_seqs: int) -> int:
        """What the scratch cache takes in a step of so many rows of so many sequences."""
        num_blocks = num_rows // _BLOCK_SIZE + num_seqs
        values = sum(math.prod(shape) for shapes in _cache_shapes(program.caches, ops, num_blocks) for shape in shapes)
        return values * ops.activation_dtype.itemsize

    @staticmethod
    def _blocks(counts: np.ndarray) -> np.ndarray:
        result: np.ndarray = -(-counts // _BLOCK_SIZE)
        return result

    def release(self) -> None:
        """Give back the memory of buffers: another part of the same model is next."""
        self._spaces, self._capacity = [], 0
        self._scratch, self._num_blocks, self._written = [], 0, None

    def _batch(
        self,
        counts: np.ndarray,
        token_ids: np.ndarray,
        key_ends: np.ndarray | None,
        parts: Sequence[tuple[int, int]],
    ) -> InputBatch:
        starts = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        positions = np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1], counts)
        blocks = self._blocks(counts)
        first_blocks = np.cumsum(blocks) - blocks
        slots = np.repeat(first_blocks * _BLOCK_SIZE, counts).astype(np.int64) + positions
        tables = (first_blocks[:, None] + np.arange(blocks.max())).astype(np.int32)
        key_lens = counts
        if parts:  # as sequences that share the blocks
            key_lens = np.array([keys for _, keys in parts], np.int32)
            starts = np.concatenate(([0], np.cumsum([number for number, _ in parts]))).astype(np.int32)
            tables = tables.repeat(len(parts), 0)
        arrays = self._planner.arrays(key_lens, starts, 0)
        ends = [] if key_ends is None else [key_ends]
        groups = 1 if self._own_caches else 0
        ids, at, slot_mapping, start_loc, lens, block_tables, *others = self._device.upload(
            token_ids, positions, slots[None][:groups], starts, key_lens, tables[None][:groups], *ends, *arrays.tensors
        )
        own_ends = others.pop(0) if ends else None
        plan = self._planner.plan(arrays, others)
        return InputBatch(ids, at, slot_mapping, start_loc, lens, block_tables, plan, key_ends=own_ends)

    def has_room(self, lens: Sequence[int]) -> bool:
        """Whether sequences of these lengths need no more memory than there is."""
        num_rows, num_blocks = self._needs(lens)
        return num_rows <= self._capacity and num_blocks <= self._num_blocks

    def _needs(self, lens: Sequence[int]) -> tuple[int, int]:
        """Rows and blocks."""
        return sum(lens), int(self._blocks(np.array(lens, np.int32)).sum())

    def reserve(self, lens: Sequence[int]) -> None:
        """Make room for sequences of these lengths. Nothing is running. Raises MemoryError, or torch's own."""
        num_rows, num_blocks = self._needs(lens)
        if num_rows > self._capacity:
            self._spaces = []  # first, so that there are not two at a time
            dtype, device = self._ops.activation_dtype, self._device.torch_device
            programs = [runner.program for runner, _ in self._pieces]
            memory = room_for(max(buffer_bytes(each, num_rows, dtype) for each in programs), device)
            self._spaces = [Workspace(each, num_rows, dtype, device, memory) for each in programs]
            self._capacity = num_rows
        if num_blocks > self._num_blocks:
            # Zeros, so that what lies behind a sequence's end is finite.
            self._scratch = [
                tuple(self._device.zeros(shape, self._ops.activation_dtype) for shape in shapes)
                for shapes in _cache_shapes(self._own_caches, self._ops, num_blocks)
            ]
            self._num_blocks = num_blocks


def buffer_bytes(program: Program, num_rows: int, dtype: torch.dtype) -> int:
    """Of a program of so many rows."""
    return Workspace(program, num_rows, dtype, torch.device("meta")).num_bytes


def _cache_shapes(caches: Sequence[Cache], ops: Ops, num_blocks: int) -> list[tuple[tuple[int, ...], ...]]:
    return [cache_shapes(ops, cache.heads, num_blocks, _BLOCK_SIZE) for cache in caches]
