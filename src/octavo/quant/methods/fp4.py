"""fp4 (e2m1) with scales that are powers of two (MXFP4), as several methods hold it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant import mxfp4
from octavo.quant.methods.parts import BYTES, Parts
from octavo.quant.packed import QuantizedWeight

_E2M1: Final = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
#: What the codes of fp4 stand for.
FP4_VALUES: Final = torch.cat([_E2M1, -_E2M1])
#: Of powers of two in one byte.
POWERS: Final = (torch.uint8, torch.float8_e8m0fnu)


def is_mx(parts: Parts) -> bool:
    """Whether `weight_scale` holds powers of two."""
    return parts.dtype("weight_scale") in POWERS


def mxfp4_weight(parts: Parts, part: str, scales: Tensor) -> QuantizedWeight:
    """`part` uint8 [N, K / 2], the first of two values in the low bits; scales [N, K / 32] of one of `POWERS`."""
    packed = parts.matrix(part, BYTES)
    n, groups = len(packed), packed.shape[1] * 2 // mxfp4.GROUP
    if 2 * packed.shape[1] % mxfp4.GROUP or tuple(scales.shape) != (n, groups):
        raise parts.fail(part, f"has the shape {list(packed.shape)}, which does not fit scales {list(scales.shape)}")
    return mxfp4.transcode(packed.view(n, groups, mxfp4.GROUP // 2), scales.view(torch.uint8))
