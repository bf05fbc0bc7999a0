"""Blocks of preempted requests in the host's memory: every bit comes back, from places that others had before."""

from __future__ import annotations

import random
import threading

import pytest
import torch

from octavo.wire.step import SchedulerOutput
from octavo.worker import swap
from octavo.worker.swap import SwapArena, SwapSpace
from support.interpreted_device import InterpretedDevice

NUM_BLOCKS = 40


def caches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Two layers of different sizes and types, and a third that shares the first one's arrays."""
    generator = torch.Generator().manual_seed(1)
    first = tuple(torch.randn(NUM_BLOCKS, 2, 4, generator=generator) for _ in range(2))
    k = torch.randn(NUM_BLOCKS, 4, 4, generator=generator).to(torch.bfloat16)
    v = torch.randn(NUM_BLOCKS, 2, 6, generator=generator).to(torch.bfloat16)
    return [(first[0], first[1]), (k, v), (first[0], first[1])]


def plan(**swaps: object) -> SchedulerOutput:
    return SchedulerOutput([], [], {}, [], 0, 0, **swaps)  # type: ignore[arg-type]


def test_every_bit_comes_back_whatever_came_and_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "_SLAB_BYTES", 512)  # a slab of some places
    monkeypatch.setattr(swap, "_STAGING_BYTES", 500)  # so many blocks are copied at once
    arrays = caches()
    each = [array for pair in arrays[:2] for array in pair]
    place_bytes = sum(array[0].nbytes for array in each)
    arena = SwapArena(InterpretedDevice(), place_bytes, 20 * 512)
    assert arena.places_per_slab == 512 // place_bytes and arena.num_places == 20 * arena.places_per_slab
    space, rng = SwapSpace(InterpretedDevice(), arrays, arena), random.Random(7)
    kept: dict[int, list[list[torch.Tensor]]] = {}  # request -> of each of its blocks, what the arrays had there
    num_back = 0
    for request_id in range(120):
        count = rng.randrange(1, 12)
        room = arena.num_places - sum(map(len, kept.values()))
        if count <= room and rng.random() < 0.6:
            blocks = rng.sample(range(1, NUM_BLOCKS), count)
            kept[request_id] = [[array[block].clone() for array in each] for block in blocks]
            space.apply(plan(swap_out=[(request_id, blocks)]))
            for array in each:  # given away
                array[blocks] = torch.randn(array[blocks].shape).to(array.dtype)
        elif kept:
            wanted = rng.choice(list(kept))
            values = kept.pop(wanted)
            if rng.random() < 0.3:
                space.apply(plan(swap_dropped=[wanted]))
                continue
            indices = sorted(rng.sample(range(len(values)), rng.randrange(1, len(values) + 1)))
            blocks = rng.sample(range(1, NUM_BLOCKS), len(indices))
            space.apply(plan(swap_in=[(wanted, indices, blocks)]))
            for index, block in zip(indices, blocks, strict=True):
                assert all(torch.equal(array[block], value) for array, value in zip(each, values[index], strict=True))
            num_back += 1
    assert num_back > 20
    space.apply(plan(swap_dropped=list(kept)))
    with pytest.raises(RuntimeError, match="places are free"):
        space.apply(plan(swap_out=[(999, [1] * (arena.num_places + 1))]))
    space.apply(plan(swap_out=[(1000, [1] * arena.num_places)]))  # all are free again


class PinningDevice(InterpretedDevice):
    """Notes who asked for memory, and refuses what is beyond the limit of the process."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.threads: list[str] = []
        self.pinned: list[torch.Tensor] = []

    def host_memory(self, num_bytes: int) -> torch.Tensor:
        self.threads.append(threading.current_thread().name)
        if len(self.pinned) == self.limit:
            raise RuntimeError("CUDA error: out of memory")
        self.pinned.append(super().host_memory(num_bytes))
        return self.pinned[-1]


def test_all_memory_is_taken_by_a_thread_at_start_and_never_again(caplog: pytest.LogCaptureFixture) -> None:
    arrays = caches()
    place_bytes = sum(array[0].nbytes for pair in arrays[:2] for array in pair)
    device = PinningDevice(limit=1)
    arena = SwapArena(device, place_bytes, 2 * swap._SLAB_BYTES + 5)
    arena.wait()
    assert device.threads == ["octavo-swap"] * 2
    assert [memory.nbytes for memory in device.pinned] == [swap._SLAB_BYTES]
    assert [r.getMessage() for r in caplog.records] == [
        "Not all of --swap-space could be pinned, which makes swapping slower: CUDA error: out of memory"
    ]
    space = SwapSpace(device, arrays, arena)
    wanted = arrays[0][0][[3, 9]].clone()
    space.apply(plan(swap_out=[(1, [3, 9])]))
    arrays[0][0].zero_()
    space.apply(plan(swap_in=[(1, [0, 1], [5, 6])]))
    assert torch.equal(arrays[0][0][[5, 6]], wanted)
    assert len(device.threads) == 2
