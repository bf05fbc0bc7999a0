"""KV blocks of preempted requests in the host's memory."""

from __future__ import annotations

import numpy as np
import torch

from octavo.device.base import Device
from octavo.wire.step import SchedulerOutput


class SwapSpace:
    """Does what a plan says about swapping, in the order of the device's work: blocks that are given away by the
    scheduler are read before the step that overwrites them, and written before the step that reads them."""

    def __init__(self, device: Device, kv_caches: list[tuple[torch.Tensor, ...]]) -> None:
        self._device = device
        # Layers of several groups share an array, or are views of its pages.
        caches = {cache.untyped_storage().data_ptr(): cache for arrays in kv_caches for cache in arrays}
        self._caches = [_blocks(cache) for cache in caches.values()]
        self._kept: dict[int, list[torch.Tensor]] = {}  # request id -> its blocks, one tensor a cache, on the host

    def apply(self, plan: SchedulerOutput) -> None:
        for request_id in plan.swap_dropped:
            self._kept.pop(request_id, None)
        for request_id, block_ids in plan.swap_out:
            (index,) = self._device.upload(np.array(block_ids, np.int64))
            self._kept[request_id] = [self._device.to_host(cache[index]) for cache in self._caches]
        for request_id, places, block_ids in plan.swap_in:
            (index,) = self._device.upload(np.array(block_ids, np.int64))
            for cache, kept in zip(self._caches, self._kept.pop(request_id), strict=True):
                cache[index] = self._device.from_host(kept[places])


def _blocks(cache: torch.Tensor) -> torch.Tensor:
    """uint8 [num_blocks, bytes of a block]: all of the memory behind an array. As bytes, for not every type can be
    indexed everywhere."""
    memory = torch.empty(0, dtype=torch.uint8, device=cache.device).set_(cache.untyped_storage())
    return memory.view(len(cache), -1)
