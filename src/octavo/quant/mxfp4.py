"""MXFP4: four bits a value, in groups of 32 with a power of two for a scale. Twice a value is a whole number within
+-12: so it is five bits, exactly."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant.block_format import BlockFormat
from octavo.quant.packed import FileValues, QuantizedWeight

GROUP: Final = 32
BITS: Final = 5
ZERO: Final = 12
#: 12 + twice what the sixteen codes stand for: 0, 0.5, 1, 1.5, 2, 3, 4, 6, and the same below zero.
TABLE: Final = (12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0)
#: Code i of a group stands in half i % 2 of byte i / 2, the lower half first.
_BLOCK: Final = BlockFormat(GROUP, GROUP // 2, ((0, GROUP // 2, 1, 4, 0),), table=TABLE)
#: Of the doubled values, by the byte that is stored: 2^(byte - 127) / 2. The last stands for no number.
_SCALES: Final = torch.tensor([*(2.0 ** (byte - 128) for byte in range(255)), torch.nan], dtype=torch.float32)


def scales_of(stored: Tensor) -> Tensor:
    """float32 of the bytes of scales, uint8 of any shape."""
    return _SCALES[stored.long()]


def transcode(blocks: Tensor, scales: Tensor) -> QuantizedWeight:
    """blocks uint8 [..., K / 32, 16] and scales uint8 [..., K / 32] as [N, K], all dimensions in front folded."""
    columns = scales.shape[-1] * GROUP
    values = FileValues(blocks.reshape(-1, columns // 2).contiguous(), _BLOCK, columns)
    return QuantizedWeight(values, BITS, GROUP, scales_of(scales).view(-1, columns // GROUP), zero=ZERO)
