"""What the layers of a decoder keep of an encoder's rows: written once a request, before its first token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.transformer import Transformer
from octavo.ops.step import KVCaches
from octavo.ops.table import Ops
from octavo.ops.workspace import Workspace
from octavo.worker.encoder import EncoderRunner
from octavo.worker.input_batch import InputBatch


class CrossInputs:
    """Encodes the inputs of the requests that a step brings, all at once, and writes keys and values of the rows to
    the requests' blocks. Of the encoder itself nothing is kept."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, kv_caches: KVCaches, block_size: int) -> None:
        """`kv_caches`: of all of the decoder's layers."""
        definition = model.definition
        assert definition.encoder is not None and definition.crossing is not None
        self._encoder = EncoderRunner(definition.encoder.program, ops, device, model.weights)
        self._crossing = ops.program_runner(ops, definition.crossing, model.weights)
        self._caches = [kv_caches[cache.index] for cache in definition.program.caches if cache.of_encoder]
        self._ops = ops
        self._device = device
        self._block_size = block_size
        self._workspace = self._new_workspace(0)

    def write(self, inputs: Sequence[list[int]], block_ids: Sequence[list[list[int]]]) -> None:
        """`inputs`: the token ids of each request's. `block_ids`: of each the blocks that it has just got, by group."""
        if not inputs:
            return
        ids = np.fromiter(chain.from_iterable(inputs), np.int32)
        lens = list(map(len, inputs))
        rows = self._encoder.run(lens, token_ids=ids)
        if len(ids) > self._workspace.capacity:
            self._workspace = self._new_workspace(len(ids))
        batch = self._batch(block_ids, ids, np.array(lens, np.int32))
        batch.input_rows = rows
        self._crossing.run(self._workspace, batch, self._caches)

    def _batch(self, block_ids: Sequence[list[list[int]]], ids: np.ndarray, lens: np.ndarray) -> InputBatch:
        """Rows that are only written: no attention reads the tables or the lengths."""
        num_groups, size = len(block_ids[0]), self._block_size
        slots = np.empty((num_groups, len(ids)), np.int64)
        starts = np.zeros(len(lens) + 1, np.int32)
        np.cumsum(lens, out=starts[1:])
        for groups, start, end in zip(block_ids, starts, starts[1:], strict=False):
            index, offset = np.divmod(np.arange(end - start), size)
            for group, blocks in enumerate(groups):
                slots[group, start:end] = np.array(blocks, np.int64)[index] * size + offset
        tables = np.zeros((num_groups, len(lens), 1), np.int32)
        return InputBatch(*self._device.upload(ids, np.zeros_like(ids), slots, starts, lens, tables))

    def _new_workspace(self, num_rows: int) -> Workspace:
        return Workspace(self._crossing.program, num_rows, self._ops.activation_dtype, self._ops.torch_device)


def encoding_bytes(definition: Definition, ops: Ops, num_rows: int, num_seqs: int) -> int:
    """What it takes to encode inputs of so many rows in a step; 0: the model has no encoder."""
    if definition.encoder is None or definition.crossing is None:
        return 0
    meta = torch.device("meta")
    programs = (definition.encoder.program, definition.crossing)
    buffers = sum(Workspace(program, num_rows, ops.activation_dtype, meta).num_bytes for program in programs)
    return buffers + EncoderRunner.scratch_bytes(definition.encoder.program, ops, num_rows, num_seqs)
