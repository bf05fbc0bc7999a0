"""Several host arrays as one piece of device memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch

_ALIGNMENT: Final = 16
_TORCH_DTYPES: Final = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.uint8): torch.uint8,
}


def packed_offsets(arrays: Sequence[np.ndarray]) -> tuple[list[int], int]:
    """Where each array begins when they lie one behind the other, aligned to 16 bytes; and the size of it all."""
    offsets, end = [], 0
    for array in arrays:
        offsets.append(end)
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def pack(arrays: Sequence[np.ndarray], offsets: Sequence[int], target: np.ndarray) -> None:
    """Copy the arrays into `target`, uint8."""
    for array, offset in zip(arrays, offsets, strict=True):
        target[offset : offset + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def unpacked(packed: torch.Tensor, arrays: Sequence[np.ndarray], offsets: Sequence[int]) -> list[torch.Tensor]:
    """Views of `packed`, uint8, with the types and shapes of the arrays that were packed."""
    return [
        packed[offset : offset + array.nbytes].view(_TORCH_DTYPES[array.dtype]).view(array.shape)
        for array, offset in zip(arrays, offsets, strict=True)
    ]
