"""The memory of a program's buffers. Buffers that are never in use at the same time share it."""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.ops.operands import Buffer
from octavo.ops.program import Program

#: Bytes to which buffers are aligned: lines of memory of a CPU and of a GPU, and what matrix libraries ask for.
_ALIGNMENT = 256


class Workspace:
    """The buffers of a program for steps of up to `capacity` tokens; the same addresses as long as it lives."""

    def __init__(
        self,
        program: Program,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        memory: Tensor | None = None,
    ) -> None:
        """`dtype`: of activations. `memory`: uint8, from `room_for`, shared with programs that run one behind another;
        None: it has its own."""
        self.capacity = capacity
        itemsizes = {buffer: (buffer.dtype or dtype).itemsize for buffer in program.lives}
        sizes = {buffer: capacity * buffer.width * itemsizes[buffer] for buffer in program.lives}
        offsets = _offsets(program.lives, sizes)
        self.num_bytes = max((offsets[buffer] + sizes[buffer] for buffer in sizes), default=0)
        if memory is None:
            memory = room_for(self.num_bytes, device)
        # One tensor a place, so that views of it can be made once a step.
        places: dict[tuple[int, int, torch.dtype], Tensor] = {}
        self._tensors: dict[Buffer, Tensor] = {}
        for buffer, offset in offsets.items():
            place = offset, buffer.width, buffer.dtype or dtype
            if place not in places:
                values = memory[offset : offset + sizes[buffer]].view(place[2])
                places[place] = values.view(capacity, buffer.width)
            self._tensors[buffer] = places[place]

    def __getitem__(self, buffer: Buffer) -> Tensor:
        """[capacity, width]."""
        return self._tensors[buffer]


def room_for(num_bytes: int, device: torch.device) -> Tensor:
    """Memory of a workspace, uint8, aligned."""
    memory = torch.empty(num_bytes + _ALIGNMENT, dtype=torch.uint8, device=device)
    return memory[-memory.data_ptr() % _ALIGNMENT :]


def _offsets(lives: dict[Buffer, tuple[int, int]], sizes: dict[Buffer, int]) -> dict[Buffer, int]:
    """Where each buffer begins: the lowest place that is free for all of its life. `lives` in order of writing."""
    offsets: dict[Buffer, int] = {}
    for buffer, (first, _) in lives.items():
        in_use = [other for other in offsets if lives[other][1] >= first]
        place = 0
        for other in sorted(in_use, key=offsets.__getitem__):
            if offsets[other] - place >= sizes[buffer]:
                break
            place = max(place, _aligned(offsets[other] + sizes[other]))
        offsets[buffer] = place
    return offsets


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
