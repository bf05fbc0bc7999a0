"""KV blocks of preempted requests in the host's memory.

The memory is taken once, at start, in slabs, by a thread: to pin gigabytes takes seconds, and a step must not wait for
that. A slab holds places, each of which takes a block of all layers, one behind the other:

    place   | k of array 0 | v of array 0 | k of array 1 | ... |
    slab    | place | place | ... | place |          slab | place | ...

Blocks are gathered on the device into that order, so that a run of neighbouring places is one copy.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch

from octavo.device.base import Device
from octavo.wire.step import SchedulerOutput

logger = logging.getLogger("octavo.worker")

#: A power of two, as what pins memory may round up to one.
_SLAB_BYTES: Final = 64 << 20
#: What is gathered on the device at once, unless a single block is more.
_STAGING_BYTES: Final = 64 << 20
_INTEGERS: Final = (torch.int64, torch.int32, torch.int16, torch.uint8)


class SwapArena:
    """Places for KV blocks on the host, which outlive a KV cache."""

    def __init__(self, device: Device, place_bytes: int, num_bytes: int) -> None:
        """As many places of `place_bytes` as fit `num_bytes`; the memory is being taken when this returns."""
        self.place_bytes = place_bytes
        largest = 1 << max(0, num_bytes.bit_length() - 1)  # the largest power of two that is not more
        place = max(1, place_bytes)  # a model without a KV cache has nothing to put there
        smallest = 1 << (place - 1).bit_length()
        self._slab_bytes = max(smallest, min(_SLAB_BYTES, largest))
        self.places_per_slab = self._slab_bytes // place
        self.num_places = 0
        self._device = device
        self._slabs: list[torch.Tensor] = []
        self._pinning: threading.Thread | None = None
        self.add(num_bytes // self._slab_bytes * self.places_per_slab)

    def add(self, num_places: int) -> None:
        """At least so many places more."""
        self.wait()
        num_slabs = max(0, -(-num_places // self.places_per_slab))
        self.num_places += num_slabs * self.places_per_slab
        if num_slabs:
            self._pinning = threading.Thread(target=self._pin, args=(num_slabs,), name="octavo-swap", daemon=True)
            self._pinning.start()

    def wait(self) -> None:
        """Until the memory is there."""
        if self._pinning is not None:
            self._pinning.join()
            self._pinning = None

    def slab(self, index: int) -> torch.Tensor:
        """uint8 [places_per_slab, place_bytes]."""
        self.wait()
        return self._slabs[index]

    def _pin(self, num_slabs: int) -> None:
        shape = self.places_per_slab, self.place_bytes
        is_told = False
        for _ in range(num_slabs):
            try:
                memory = self._device.host_memory(self._slab_bytes)
            except RuntimeError as error:
                # Memory that is not pinned works as well; a copy to it makes the host wait.
                memory = torch.empty(self._slab_bytes, dtype=torch.uint8)
                if not is_told:
                    logger.warning("Not all of --swap-space could be pinned, which makes swapping slower: %s", error)
                is_told = True
            self._slabs.append(memory[: self.places_per_slab * self.place_bytes].view(shape))


class SwapSpace:
    """Does what a plan says about swapping, in the order of the device's work: blocks that are given away by the
    scheduler are read before the step that overwrites them, and written before the step that reads them. A place is
    free as soon as its last copy was launched, for the next one comes behind it."""

    def __init__(self, device: Device, kv_caches: list[tuple[torch.Tensor, ...]], arena: SwapArena) -> None:
        self._device = device
        self._arena = arena
        # Layers of several groups share an array, or are views of its pages.
        caches = {cache.untyped_storage().data_ptr(): cache for arrays in kv_caches for cache in arrays}
        blocks = [_blocks(cache) for cache in caches.values()]
        self._block_bytes = [cache.shape[1] for cache in blocks]
        assert sum(self._block_bytes) == arena.place_bytes
        # As integers, for not every type can be indexed everywhere: the widest that all blocks are made of.
        self._dtype = next(dtype for dtype in _INTEGERS if math.gcd(*self._block_bytes) % dtype.itemsize == 0)
        self._caches = [cache.view(self._dtype) for cache in blocks]
        self._free = list(range(arena.num_places))  # in rising order, so that what is taken lies together
        self._num_known = arena.num_places
        self._kept: dict[int, list[int]] = {}  # request id -> the place of each of its blocks

    def apply(self, plan: SchedulerOutput) -> None:
        """Raises RuntimeError where the plan keeps more than there are places for."""
        for request_id in plan.swap_dropped:
            self._release(request_id)
        for request_id, block_ids in plan.swap_out:
            places = self._kept[request_id] = self._take(len(block_ids))
            self._save(block_ids, places)
        for request_id, indices, block_ids in plan.swap_in:
            places = self._kept[request_id]
            self._restore([places[index] for index in indices], block_ids)
            self._release(request_id)

    def _take(self, count: int) -> list[int]:
        if self._num_known < self._arena.num_places:
            self._free += range(self._num_known, self._arena.num_places)
            self._num_known = self._arena.num_places
        if count > len(self._free):
            raise RuntimeError(f"{count} KV blocks are to be swapped, and {len(self._free)} places are free")
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _release(self, request_id: int) -> None:
        self._free = sorted(self._free + self._kept.pop(request_id, []))

    def _save(self, block_ids: Sequence[int], places: Sequence[int]) -> None:
        for index, staging, part in self._parts(block_ids, places):
            for cache, columns in zip(self._caches, self._columns(staging), strict=True):
                columns.copy_(cache[index])
            for start, end, kept in self._runs(part):
                kept.copy_(staging[start:end], non_blocking=True)

    def _restore(self, places: Sequence[int], block_ids: Sequence[int]) -> None:
        for index, staging, part in self._parts(block_ids, places):
            for start, end, kept in self._runs(part):
                staging[start:end].copy_(kept, non_blocking=True)
            for cache, columns in zip(self._caches, self._columns(staging), strict=True):
                cache[index] = columns

    def _parts(
        self, block_ids: Sequence[int], places: Sequence[int]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Sequence[int]]]:
        """(blocks int64 [n], memory on the device uint8 [n, place_bytes], places), so many at once as fit it."""
        most = max(1, _STAGING_BYTES // self._arena.place_bytes)
        for start in range(0, len(block_ids), most):
            part = block_ids[start : start + most]
            (index,) = self._device.upload(np.array(part, np.int64))
            shape = len(part), self._arena.place_bytes
            staging = torch.empty(shape, dtype=torch.uint8, device=self._device.torch_device)
            yield index, staging, places[start : start + most]

    def _columns(self, staging: torch.Tensor) -> Sequence[torch.Tensor]:
        """Of each array its blocks, [n, integers]."""
        sizes = [size // self._dtype.itemsize for size in self._block_bytes]
        return torch.split(staging.view(self._dtype), sizes, dim=1)

    def _runs(self, places: Sequence[int]) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(start, end, memory): places[start:end] are neighbours in one slab, where they have this memory."""
        per_slab = self._arena.places_per_slab
        start = 0
        for end in range(1, len(places) + 1):
            first = places[start]
            if end < len(places) and places[end] == first + end - start and places[end] % per_slab:
                continue
            slab, offset = divmod(first, per_slab)
            yield start, end, self._arena.slab(slab)[offset : offset + end - start]
            start = end


def _blocks(cache: torch.Tensor) -> torch.Tensor:
    """uint8 [num_blocks, bytes of a block]: all of the memory behind an array. As bytes, for not every type can be
    indexed everywhere."""
    memory = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(cache.untyped_storage())
    return memory.view(len(cache), -1)
