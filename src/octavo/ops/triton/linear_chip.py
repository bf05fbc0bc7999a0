"""What the choice of a kernel depends on of the GPU."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chip:
    num_sms: int
    capability: tuple[int, int]

    @property
    def has_tma(self) -> bool:
        """Whether tiles are copied by the hardware from a description of the matrix (Hopper and later)."""
        return self.capability >= (9, 0)


#: Stands for the GPU where kernels run in the interpreter: few multiprocessors, so that small tests fill them.
_INTERPRETER: Final = Chip(4, (9, 0))


@functools.cache
def chip(device: torch.device) -> Chip:
    """Asked of the driver once for each device."""
    if device.type != "cuda":
        return _INTERPRETER
    properties = torch.cuda.get_device_properties(device)
    return Chip(properties.multi_processor_count, (properties.major, properties.minor))


def is_aligned(rows: Tensor) -> bool:
    """Whether each row of a matrix begins at a multiple of 16 bytes and holds a whole number of them."""
    step = rows.element_size()
    return rows.data_ptr() % 16 == 0 and rows.stride(0) * step % 16 == 0 and rows.shape[1] * step % 16 == 0
