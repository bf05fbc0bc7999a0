"""Encoded rows of media: made by the model's tower, kept as long as the scheduler says, put where their tokens are.

A picture is one or several sequences of patches, of which all rows see each other. A video is one for each of its
times; their windows and positions are the same.

Encoding stands still wherever a piece of a tower's program has run (`ops.pieces`), and goes on in a later step if the
plan says so: it is a generator, whose variables are what must be kept until then. It yields how far it has come,
counted as `MediaItem.size` is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import numpy as np
import torch

from octavo.base.media import MediaItem
from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.tower import TowerDefinition
from octavo.models.transformer import Transformer
from octavo.ops.pieces import Cut, pieces
from octavo.ops.table import Ops
from octavo.wire.step import MediaPart, MediaPlace, SchedulerOutput
from octavo.worker.arrays import array, pixel_values
from octavo.worker.codes import CodeEncoder, codes_bytes
from octavo.worker.encoder import EncoderRunner, Pieces, buffer_bytes, progress
from octavo.worker.input_batch import HostBatch, InputBatch
from octavo.worker.resampler import ResamplerRunner
from octavo.worker.sounds import SoundEncoder, sound_bytes


@dataclass
class _UnderWay:
    digest: bytes
    steps: Generator[int, None, torch.Tensor]
    done: int = 0


class MediaEncoder:
    """Owns the rows. `most_patches`: that are encoded at once, unless a single sequence has more."""

    def __init__(self, model: Transformer, ops: Ops, device: Device, most_patches: int) -> None:
        tower = model.definition.tower
        assert tower is not None, "the model reads text alone"
        self._spec = tower.spec
        self._dtype = ops.activation_dtype
        self._device = device
        self._most_patches = most_patches
        self._sounds = None
        if tower.spec.sound is not None:
            self._sounds = SoundEncoder(tower, model.weights, ops, device, most_patches)
            tower = replace(tower, stages=())
        cut: Cut = "to the last attention" if tower.spec.drops_rows else "all layers"
        self._stages = [
            (
                stage,
                EncoderRunner(stage.program, ops, device, model.weights, cut=cut),
                None if stage.tap is None else EncoderRunner(stage.tap, ops, device, model.weights),
                None if stage.mean is None else EncoderRunner(stage.mean, ops, device, model.weights),
            )
            for stage in tower.stages
        ]
        self._queries: tuple[EncoderRunner, EncoderRunner] | None = None
        if (queries := tower.queries) is not None:
            self._queries = (
                EncoderRunner(queries.keys, ops, device, model.weights),
                EncoderRunner(queries.program, ops, device, model.weights),
            )
        self._codes = None
        if tower.spec.codes is not None and tower.codes is not None:
            self._codes = CodeEncoder(tower.spec.codes, tower.codes, ops, device, model.weights)
        self._position_table = None if tower.position_table is None else model.weights[tower.position_table.name]
        self._newline = None if tower.newline is None else model.weights[tower.newline.name]
        self._separators = None if tower.separators is None else model.weights[tower.separators.name]
        self._projection = None
        if tower.projection is not None:
            self._projection = EncoderRunner(tower.projection, ops, device, model.weights)
        self._resampler = None
        if tower.resampler is not None:
            self._resampler = ResamplerRunner(tower.resampler, ops, device, model.weights)
        #: Of a group of sequences that are encoded at once.
        self._num_pieces = max(1, sum(runner.num_pieces for _, runner, _, _ in self._stages))
        self._rows: dict[bytes, torch.Tensor] = {}  # by digest: [rows, width] of the activations' type
        self._under_way: _UnderWay | None = None

    def apply(self, plan: SchedulerOutput) -> None:
        """Drop and encode what a step says."""
        for digest in plan.media_dropped:
            self._rows.pop(digest, None)
            if self._under_way is not None and self._under_way.digest == digest:
                self._give_up()
        for part in plan.media_encoded:
            if part.item is not None and part.item.kind == "embeds":
                self._rows[part.digest] = self._ready(part.item)
            else:
                self._encode_part(part)

    def _encode_part(self, part: MediaPart) -> None:
        if part.item is not None:
            assert self._under_way is None, "one medium at a time"
            self._rows.pop(part.digest, None)
            under = _UnderWay(part.digest, self._encoded(part.item))
        elif part.digest in self._rows:
            return  # its last piece reached further than the plan
        else:
            assert self._under_way is not None and self._under_way.digest == part.digest
            under = self._under_way
        self._under_way = None  # should this fail, it is begun anew
        while part.end is None or under.done < part.end:
            try:
                under.done = next(under.steps)
            except StopIteration as end:
                self._rows[part.digest] = end.value
                return
        self._under_way = under

    def _give_up(self) -> None:
        """Nobody wants what is under way any more."""
        self._under_way = None
        if len(self._stages) > 1:
            for _, runner, _, _ in self._stages:
                runner.release()
        if self._sounds is not None:
            self._sounds.release()

    def place(self, batch: InputBatch, host: HostBatch, places: dict[int, list[MediaPlace]]) -> None:
        """Let a step read the rows of the placeholders among its tokens. `places`: of each slot; those whose tokens are
        all computed are taken out."""
        indices: list[np.ndarray] = []
        parts: list[torch.Tensor] = []
        key_ends = _own_ends(host) if self._spec.whole_spans else None
        for at, slot in enumerate(host.slots.tolist()):
            if slot not in places:
                continue
            base, end = int(host.query_start_loc[at]), int(host.seq_lens[at])
            start = end - int(host.num_scheduled[at])
            if start >= sum(places[slot][-1].spans[-1]):
                del places[slot]
                continue
            for place in places[slot]:
                row = 0
                for first, length in place.spans:
                    low, high = max(first, start), min(first + length, end)
                    if low < high:
                        indices.append(np.arange(base + low - start, base + high - start, dtype=np.int64))
                        if key_ends is not None:
                            key_ends[indices[-1]] = first + length
                        parts.append(self._rows[place.digest][row + low - first : row + high - first])
                    row += length
        if parts:
            (batch.replaced_index,) = self._device.upload(np.concatenate(indices))
            batch.replaced_rows = torch.cat(parts)
            if key_ends is not None:
                (batch.key_ends,) = self._device.upload(key_ends)

    @property
    def lets_prompts_see(self) -> bool:
        """Whether all tokens of a prompt see all of it."""
        return self._spec.whole_prompts

    def let_prompts_see(self, batch: InputBatch, host: HostBatch, num_prompt_tokens: np.ndarray) -> None:
        """Let all tokens of a prompt see all of it, where the model does so. `num_prompt_tokens`: of each sequence."""
        if self.lets_prompts_see:
            of_rows = np.repeat(num_prompt_tokens, np.diff(host.query_start_loc))
            (batch.key_ends,) = self._device.upload(np.maximum(_own_ends(host), of_rows).astype(np.int32))

    def _ready(self, item: MediaItem) -> torch.Tensor:
        given = array(item.tensors["rows"]).astype(np.float32) * np.float32(self._spec.row_scale)
        (rows,) = self._device.upload(given)
        return rows.to(self._dtype)

    def _encoded(self, item: MediaItem) -> Generator[int, None, torch.Tensor]:
        if self._sounds is not None:
            rows = yield from self._sounds.encode(item)
            assert len(rows) == item.rows, f"a sound of {item.rows} rows was encoded to {len(rows)}"
            return rows
        values, lens = self._values(item)
        positions = array(item.tensors["positions"])
        positions = positions.reshape(*positions.shape[:-2], -1)
        parts, first, start = [], 0, 0
        while first < len(lens):
            last, end = first + 1, start + lens[first]
            while last < len(lens) and end - start + lens[last] <= self._most_patches:
                last, end = last + 1, end + lens[last]
            steps = self._encode(values(start, end), positions[..., start:end], lens[first:last], item)
            made = yield from progress(steps, start, end, self._num_pieces)
            if self._resampler is not None:
                made = self._resampler.run(made, lens[first:last], array(item.tensors["places"])[start:end])
            parts.append(made)
            if last < len(lens):
                yield end
            first, start = last, end
        rows = torch.cat(parts)
        if "order" in item.tensors:
            if self._newline is not None:
                rows = torch.cat((rows, self._newline.to(self._dtype)[None]))
            if self._separators is not None:
                rows = torch.cat((rows, self._separators.to(self._dtype).view(-1, rows.shape[1])))
            rows = rows[self._device.upload(array(item.tensors["order"]).astype(np.int64))[0]]
        if self._projection is not None:
            rows = self._projection.run([len(rows)], rows=rows).clone()
            self._projection.release()
        assert len(rows) == item.rows, f"a picture of {item.rows} rows was encoded to {len(rows)}"
        return rows if self._spec.row_scale == 1.0 else rows * self._spec.row_scale

    def _values(self, item: MediaItem) -> tuple[Callable[[int, int], np.ndarray], list[int]]:
        """From the numbers of the first patch and of that behind the last to their values, float32 [P, values]; and how
        many patches each sequence has. `patches` uint8 [S, P, values], the same of each channel after the other, mean
        what `levels` float32 [3, 256] say; in front of them are those of `values` float32 [S, P, values], if any."""
        patches, levels = array(item.tensors["patches"]), array(item.tensors["levels"])
        given = array(item.tensors["values"]) if "values" in item.tensors else np.zeros((0, *patches.shape[1:]))
        lens = [patches.shape[1]] * (len(given) + len(patches))
        if "lens" in item.tensors:  # they are not all alike, and stand one behind the other
            lens = array(item.tensors["lens"]).tolist()
        flat, front = patches.reshape(-1, patches.shape[2]), given.reshape(-1, patches.shape[2]).astype(np.float32)

        def values(start: int, end: int) -> np.ndarray:
            found = pixel_values(flat[max(0, start - len(front)) : max(0, end - len(front))], levels)
            return np.concatenate((front[start:end], found)) if start < len(front) else found

        return values, lens

    def _encode(
        self, values: np.ndarray, positions: np.ndarray, lens: list[int], item: MediaItem
    ) -> Pieces[torch.Tensor]:
        """`values` float32 [P, values] of sequences of `lens` patches; `positions` int32 [P], or [parts, P]."""
        if self._spec.channels_last:
            values = values.reshape(len(values), 3, -1).swapaxes(1, 2).reshape(values.shape)
        if self._codes is not None:
            side = self._codes.side
            return self._codes.run(values.reshape(-1, 3, side, side))
        if values.shape[1] < self._spec.patch_values:  # a picture stands still
            still = values.reshape(len(values), 3, 1, -1)
            values = np.repeat(still, self._spec.frames, 2)
        needed = None
        if self._spec.has_class_token:
            starts = np.cumsum([0, *lens[:-1]])
            values, positions = np.insert(values, starts, 0, 0), np.insert(positions + 1, starts, 0, -1)
            lens = [length + 1 for length in lens]
            if self._spec.drops_rows:
                needed = np.delete(np.arange(len(values), dtype=np.int64), starts + np.arange(len(starts)))
        (rows,) = self._device.upload(np.ascontiguousarray(values.reshape(-1, self._spec.patch_values)))
        # A copy, since torch warns of arrays that it could not write to.
        positions = np.array(positions, np.int32, order="C")
        del values  # it stands still from here on
        return (yield from self._through_stages(rows.to(self._dtype), lens, positions, needed, item))

    def _through_stages(
        self, rows: torch.Tensor, lens: list[int], positions: np.ndarray, needed: np.ndarray | None, item: MediaItem
    ) -> Pieces[torch.Tensor]:
        taps: list[torch.Tensor] = []
        joined: list[torch.Tensor] = []
        is_whole = True  # rows are those of patches still, with their positions
        for number, (stage, runner, tap, mean) in enumerate(self._stages):
            is_last = number == len(self._stages) - 1
            if is_last and joined:
                rows = torch.cat(joined, 1)
            means = None
            if mean is not None:
                means = mean.run(lens, rows=rows).clone()
                mean.release()
            own = array(item.tensors["windows"]).tolist() * len(lens) if stage.is_windowed else lens
            made = yield from runner.steps(
                [stage.window] * (len(rows) // stage.window) if stage.window else own,
                rows=rows,
                positions=positions if is_whole else None,
                needed=needed if is_last else None,
            )
            rows = made.clone()
            if means is not None:
                rows += means
            if stage.divisor > 1:
                lens, is_whole = [length // stage.divisor for length in lens], False
            if len(self._stages) > 1:
                runner.release()
            if number == 0 and self._position_table is not None:
                rows += self._mixed_positions(item, self._position_table).to(self._dtype).repeat(len(lens), 1)
            if stage.is_joined:
                joined.append(rows)
            if tap is not None:
                taps.append(tap.run(lens, rows=rows).clone())
                tap.release()
            if not is_last:
                yield
        if self._queries is not None:
            rows = self._read(rows, lens)
        return torch.cat((rows, *taps), 1) if taps else rows

    def _read(self, rows: torch.Tensor, lens: list[int]) -> torch.Tensor:
        """What the learned queries of each picture see in its rows."""
        assert self._queries is not None and self._spec.queries is not None
        keys, queries = self._queries
        keys.run(lens, rows=rows)
        counts = [self._spec.queries.number] * len(lens)
        found = queries.run(counts, token_ids=np.zeros(sum(counts), np.int32), seen=keys.written).clone()
        for each in self._queries:
            each.release()
        return found

    def _mixed_positions(self, item: MediaItem, table: torch.Tensor) -> torch.Tensor:
        """float32 [patches, hidden size]: of the table's rows `corners` int32 [n, patches] so much as `shares` says."""
        corners, shares = self._device.upload(
            array(item.tensors["corners"]).astype(np.int64), array(item.tensors["shares"]).astype(np.float32)
        )
        total: torch.Tensor = table[corners[0]] * shares[0][:, None]
        for corner, share in zip(corners[1:], shares[1:], strict=True):
            total += table[corner] * share[:, None]
        return total


def _own_ends(host: HostBatch) -> np.ndarray:
    """int32 [T]: of each row the number of tokens up to its own."""
    starts, lens = host.query_start_loc, host.seq_lens
    rows = np.arange(1, starts[-1] + 1, dtype=np.int32)
    ends: np.ndarray = rows + np.repeat(lens - starts[1:], np.diff(starts)).astype(np.int32)
    return ends


def media_ops(tower: TowerDefinition) -> tuple[int, int]:
    """`EngineInfo.media_unit_ops` and `media_attention_ops`, as if all of a tower were done for each unit."""
    if tower.spec.sound is not None:  # two frames are a row
        first, layers, head = (stage.program for stage in tower.stages)
        return first.matrix_ops + (layers.matrix_ops + head.matrix_ops) // 2, layers.attention_ops // 4
    programs = [stage.program for stage in tower.stages]
    return sum(each.matrix_ops for each in programs), sum(each.attention_ops for each in programs)


def media_bytes(definition: Definition, ops: Ops, num_patches: int, num_rows: int) -> int:
    """What it takes to encode so many patches at once, and to keep so many rows; 0: the model reads text alone."""
    tower = definition.tower
    if tower is None:
        return 0
    patches, itemsize = max(num_patches, tower.spec.num_positions), ops.activation_dtype.itemsize
    width = definition.spec.hidden_size * (1 + len(tower.spec.taps))
    kept = num_rows * width * itemsize
    if tower.spec.sound is not None:
        return sound_bytes(tower, ops, num_patches) + kept
    made = [
        *tower.programs,
        *(piece.program for stage in tower.stages for piece in pieces(stage.program, "all layers")),
    ]
    buffers = max(buffer_bytes(each, patches, ops.activation_dtype) for each in made)
    scratch = max(EncoderRunner.scratch_bytes(each, ops, patches, 1) for each in tower.programs)
    if tower.spec.codes is None:
        inputs = patches * tower.spec.patch_values * torch.float32.itemsize
    else:
        inputs = codes_bytes(tower.spec.codes)
    # Between two steps these stand still, and beside them what the first piece gives to the second.
    return buffers + scratch + inputs + patches * tower.spec.hidden_size * itemsize + kept
