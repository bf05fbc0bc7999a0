"""What the layers of a decoder keep of an encoder's rows: written once a request, before its first token."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import Tensor

from octavo.base.media import MediaTensor
from octavo.cache.pictures import View
from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.transformer import Transformer
from octavo.ops.step import KVCaches
from octavo.ops.table import Ops
from octavo.ops.workspace import Workspace
from octavo.wire.step import NewRequestData
from octavo.worker.arrays import array, three_by_three
from octavo.worker.encoder import EncoderRunner
from octavo.worker.input_batch import InputBatch

#: Of the rows of sounds that are kept.
_KEPT_BYTES: Final = 64 << 20


class Crossing:
    """Writes keys and values of rows to the blocks of layers that see them."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, kv_caches: KVCaches, block_size: int) -> None:
        """`kv_caches`: of all of the decoder's layers."""
        definition = model.definition
        assert definition.crossing is not None
        self._runner = ops.program_runner(ops, definition.crossing, model.weights)
        self._caches = [kv_caches[cache.index] for cache in definition.program.caches if cache.of_encoder]
        self._ops, self._device = ops, device
        self._block_size = block_size
        self._workspace = self._new_workspace(0)

    def write(self, rows: Tensor, lens: Sequence[int], block_ids: Sequence[list[list[int]]]) -> None:
        """`rows`: of several requests, `lens` of each. `block_ids`: of each the blocks that it just got, by group."""
        if len(rows) > self._workspace.capacity:
            self._workspace = self._new_workspace(len(rows))
        batch = self._batch(block_ids, np.array(lens, np.int32))
        batch.input_rows = rows
        self._runner.run(self._workspace, batch, self._caches)

    def _batch(self, block_ids: Sequence[list[list[int]]], lens: np.ndarray) -> InputBatch:
        """Rows that are only written: no attention reads the tables or the lengths."""
        num_groups, size = len(block_ids[0]), self._block_size
        starts = np.zeros(len(lens) + 1, np.int32)
        np.cumsum(lens, out=starts[1:])
        slots = np.empty((num_groups, starts[-1]), np.int64)
        for groups, start, end in zip(block_ids, starts, starts[1:], strict=False):
            index, offset = np.divmod(np.arange(end - start), size)
            for group, blocks in enumerate(groups):
                slots[group, start:end] = np.array(blocks, np.int64)[index] * size + offset
        tables = np.zeros((num_groups, len(lens), 1), np.int32)
        ids = np.zeros(starts[-1], np.int32)
        return InputBatch(*self._device.upload(ids, ids, slots, starts, lens, tables))

    def _new_workspace(self, num_rows: int) -> Workspace:
        return Workspace(self._runner.program, num_rows, self._ops.activation_dtype, self._ops.torch_device)


class CrossInputs:
    """Encodes the inputs of the requests that a step brings, all at once, and writes keys and values of the rows to
    the requests' blocks.

    Rows of sounds are kept for a while, since the same are asked for again: at another temperature, or to learn when
    each word was said. A row follows from its sound alone, so that no reply depends on what is kept.
    """

    def __init__(self, model: Transformer, ops: Ops, device: Device, kv_caches: KVCaches, block_size: int) -> None:
        """`kv_caches`: of all of the decoder's layers."""
        definition = model.definition
        assert definition.encoder is not None
        self._encoder = EncoderRunner(definition.encoder.program, ops, device, model.weights)
        first = definition.encoder.first
        self._first = None if first is None else EncoderRunner(first, ops, device, model.weights)
        self._crossing = Crossing(model, ops, device, kv_caches, block_size)
        self._ops = ops
        self._device = device
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()  # by the digest of the frames, the last used at the end
        self.heard: dict[int, Tensor] = {}  # of slots that want an alignment: the encoder's rows

    def enter(self, requests: Sequence[NewRequestData]) -> dict[int, tuple[View, ...]]:
        """Returns nothing that is to be kept: all tokens see all rows."""
        parts = self.write(
            [request.encoder_token_ids for request in requests],
            [request.encoder_block_ids for request in requests],
            [request.encoder_frames for request in requests],
        )
        for request, rows in zip(requests, parts, strict=True):
            if request.params.alignment is not None:
                self.heard[request.slot] = rows
        return {}

    def write(
        self,
        inputs: Sequence[list[int]],
        block_ids: Sequence[list[list[int]]],
        frames: Sequence[MediaTensor | None] = (),
    ) -> list[Tensor]:
        """`inputs`: the token ids of each request's. `block_ids`: of each the blocks that it has just got, by group.
        `frames`: of each the frames of its sound, where the encoder hears. Returns the rows of each, views of what
        lasts until the next call unless they are a sound's."""
        if not inputs:
            return []
        lens = list(map(len, inputs))
        if self._first is None:
            rows = self._encoder.run(lens, token_ids=np.fromiter(chain.from_iterable(inputs), np.int32))
            parts = list(torch.split(rows, lens))
        else:
            parts = self._heard(frames)
            rows = torch.cat(parts)
        self._crossing.write(rows, lens, block_ids)
        return parts

    def _heard(self, frames: Sequence[MediaTensor | None]) -> list[Tensor]:
        """The encoder's rows of each sound."""
        digests, missing = [], {}
        for each in frames:
            assert each is not None
            digests.append(hashlib.sha256(each.data).digest())
            if digests[-1] in self._kept:
                self._kept.move_to_end(digests[-1])
            else:
                missing[digests[-1]] = each
        found = dict(self._kept)
        if missing:
            taps = [three_by_three(part, step=2) for part in self._convolved(list(missing.values()))]
            lens = list(map(len, taps))
            rows = torch.split(self._encoder.run(lens, rows=torch.cat(taps)), lens)
            for digest, part in zip(missing, rows, strict=True):
                found[digest] = part.clone()
                self._keep(digest, found[digest])
        return [found[digest] for digest in digests]

    def _keep(self, digest: bytes, rows: Tensor) -> None:
        self._kept[digest] = rows
        while sum(each.nbytes for each in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)

    def _convolved(self, frames: Sequence[MediaTensor]) -> list[Tensor]:
        """The frames of each request [2 rows, hidden_size], after the first convolution."""
        assert self._first is not None
        taps, lens = [], []
        for each in frames:
            (uploaded,) = self._device.upload(array(each).copy())  # torch wants to be able to write
            taps.append(three_by_three(uploaded.to(self._ops.activation_dtype), step=1))
            lens.append(len(uploaded))
        return list(torch.split(self._first.run(lens, rows=torch.cat(taps)), lens))


def encoder_channels(definition: Definition) -> int:
    """Of the frames that the encoder takes; 0: it takes tokens, or there is none."""
    frames = None if definition.encoder is None else definition.encoder.spec.frames
    return 0 if frames is None else frames.channels


def max_encoder_len(definition: Definition) -> int:
    """Rows that the encoder's input may have; 0: there is none."""
    return 0 if definition.encoder is None else definition.encoder.spec.max_positions


def silence(definition: Definition, num_rows: int) -> MediaTensor | None:
    """Frames for so many rows of the encoder, where it takes frames."""
    if not (channels := encoder_channels(definition)):
        return None
    return MediaTensor("float32", (2 * num_rows, channels), bytes(8 * num_rows * channels))


def encoding_bytes(definition: Definition, ops: Ops, num_rows: int, num_seqs: int) -> int:
    """What it takes to encode inputs of so many rows in a step; 0: the model has no encoder."""
    if definition.encoder is None or definition.crossing is None:
        return 0
    meta = torch.device("meta")
    programs = (definition.encoder.program, definition.crossing)
    buffers = sum(Workspace(program, num_rows, ops.activation_dtype, meta).num_bytes for program in programs)
    if (first := definition.encoder.first) is not None:  # of three frames each, and twice as many
        taps = 2 * num_rows * 3 * (encoder_channels(definition) + definition.encoder.spec.hidden_size)
        buffers += Workspace(first, 2 * num_rows, ops.activation_dtype, meta).num_bytes
        buffers += taps * ops.activation_dtype.itemsize + _KEPT_BYTES
    return buffers + EncoderRunner.scratch_bytes(definition.encoder.program, ops, num_rows, num_seqs)
