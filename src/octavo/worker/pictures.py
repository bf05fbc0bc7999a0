"""Pictures that layers see beside the text: encoded when their request is admitted, keys and values kept in its blocks.

All rows of a picture see each other, but for those of padding: they see the picture's own, and are seen.

rows    | tiles that the picture has . . | tiles that it has not | zeros |
sees    | everything                     | the picture's own             |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from octavo.base.media import MediaItem
from octavo.cache.pictures import View, most_places, picture_rows, pictures_of
from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.pictures import PicturesDefinition, num_padded
from octavo.models.transformer import Transformer
from octavo.ops.program import Program
from octavo.ops.step import KVCaches
from octavo.ops.table import Ops
from octavo.ops.workspace import Workspace
from octavo.wire.step import NewRequestData
from octavo.worker.arrays import array, pixel_values
from octavo.worker.cross_inputs import Crossing
from octavo.worker.encoder import EncoderRunner

#: Of a request.
MOST_PICTURES: Final = 4
#: So many pictures' rows are kept for who asks about them again, the last ones.
_KEPT: Final = 4


class PictureInputs:
    """Owns the rows of the last pictures; of others they are encoded again, as for a preempted request."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, kv_caches: KVCaches, block_size: int) -> None:
        assert model.definition.pictures is not None
        self._crossing = Crossing(model, ops, device, kv_caches, block_size)
        self._block_size = block_size
        self._spec = model.definition.pictures.spec
        self._width = model.spec.hidden_size
        self._tower = _Tower(model.definition.pictures, model, ops, device)
        self._device, self._dtype = device, ops.activation_dtype
        self._kept: dict[bytes, Tensor] = {}  # by digest, the one read last at the end

    def enter(self, requests: Sequence[NewRequestData]) -> dict[int, tuple[View, ...]]:
        """By slot, what the tokens of each request see."""
        views, rows = {}, []
        for request in requests:
            own = [self._rows(item) for item in request.encoder_media]
            pictures = pictures_of(request.encoder_media, self._spec.tile_rows)
            laid = picture_rows(pictures, self._spec.num_rows, self._block_size)
            views[request.slot] = laid.views
            if own:
                (source,) = self._device.upload(np.array(laid.source, np.int64))
                rows.append(torch.cat(own)[source])
            else:
                rows.append(self._device.zeros((1, self._width), self._dtype))
        if rows:
            lens = list(map(len, rows))
            self._crossing.write(torch.cat(rows), lens, [request.encoder_block_ids for request in requests])
        return views

    def _rows(self, item: MediaItem) -> Tensor:
        rows = self._kept.pop(item.digest, None)
        self._kept[item.digest] = rows = self._tower.encode(item) if rows is None else rows
        if len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return rows


def most_rows(definition: Definition, block_size: int) -> int:
    """Places in the blocks of a group that a request's pictures may take; 0: no layer sees pictures beside the text."""
    spec = definition.spec.pictures
    return 0 if spec is None else most_places(MOST_PICTURES, spec.num_rows, block_size)


def picture_bytes(definition: Definition, ops: Ops, block_size: int) -> int:
    """What it takes to encode the pictures of a request, and to write what layers keep of them."""
    pictures, crossing = definition.pictures, definition.crossing
    if pictures is None or crossing is None:
        return 0
    spec, meta = pictures.spec, torch.device("meta")
    num_rows = spec.num_rows + spec.num_tiles * num_padded(spec)
    values = num_rows * (spec.patch_values + (2 + len(spec.taken)) * spec.hidden_size)
    buffers = sum(Workspace(each, num_rows, ops.activation_dtype, meta).num_bytes for each in pictures.programs)
    scratch = sum(EncoderRunner.scratch_bytes(each, ops, num_rows, 1) for each in pictures.programs)
    most = most_rows(definition, block_size)
    written = Workspace(crossing, most, ops.activation_dtype, meta).num_bytes
    values += (2 * most + _KEPT * spec.num_rows) * definition.spec.hidden_size
    return buffers + scratch + written + values * torch.float32.itemsize


class _Tower:
    def __init__(self, definition: PicturesDefinition, model: Transformer, ops: Ops, device: Device) -> None:
        def runner(program: Program) -> EncoderRunner:
            return EncoderRunner(program, ops, device, model.weights)

        self._spec, self._device, self._dtype = definition.spec, device, ops.activation_dtype
        self._patches, self._pre_norm = runner(definition.patches), runner(definition.pre_norm)
        self._layers = list(map(runner, definition.layers))
        self._post_norm, self._global = runner(definition.post_norm), runner(definition.global_layers)
        self._projector = runner(definition.projector)
        self._tile_rows: Tensor = model.weights[definition.tile_rows.name]
        self._tile_marks: Tensor = model.weights[definition.tile_marks.name]

    def encode(self, item: MediaItem) -> Tensor:
        """[num_rows, width of the language model]: those of the tiles that the picture has, then of padding."""
        spec, dtype = self._spec, self._dtype
        ratio = int(array(item.tensors["ratio"])[0])
        patches = array(item.tensors["patches"])
        own, total = len(patches) * spec.tile_rows, spec.num_rows
        (values,) = self._device.upload(pixel_values(patches, array(item.tensors["levels"])))
        found = self._patches.run([len(values)], rows=values.to(dtype))
        rows = self._tile_rows[ratio * total : (ratio + 1) * total].to(dtype, copy=True)
        rows.view(spec.num_tiles, spec.tile_rows, -1)[: len(patches), 1:] += found.view(
            len(patches), spec.tile_rows - 1, -1
        )
        rows = self._pre_norm.run([total], rows=rows)
        padding = num_padded(spec) * spec.num_tiles
        rows = torch.cat((rows, rows.new_zeros(padding, rows.shape[1])))
        length = len(rows)
        parts = [(own, length), (length - own, own)]
        taken = []
        for number, layers in enumerate(self._layers):
            rows = layers.run([length], rows=rows, parts=parts)
            if number < len(spec.taken):
                taken.append(rows[:total].clone())
        marks = self._tile_marks[ratio * spec.num_tiles : (ratio + 1) * spec.num_tiles].to(dtype)
        each = (marks.repeat_interleave(spec.tile_rows, 0), marks.repeat_interleave(num_padded(spec), 0))
        rows = self._post_norm.run([length], rows=rows) + torch.cat(each)
        rows = self._global.run([length], rows=rows, parts=parts)[:total]
        # Of the inner layers the columns take turns.
        joined = torch.cat((rows, *([torch.stack(taken, -1).flatten(1)] if taken else [])), 1)
        return self._projector.run([total], rows=joined).clone()
