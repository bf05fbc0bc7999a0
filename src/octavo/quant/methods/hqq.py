"""HQQ: integers of 1 to 8 bits with zeros that are floats, in groups of the flattened matrix.

W_q      the codes as [groups, group size], or [group size, groups] for axis 0; those of fewer bits are packed along
         dimension 0: the rows in as many equal parts as fit, the first in the highest bits
scale, zero   float, one a group
shape, nbits, group_size, axis, ...   settings, as integers in tensors
w = (u - zero) * scale
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import FLOATS, Parts, Settings, held_bits
from octavo.quant.packed import QuantizedWeight

_SETTINGS: Final = (
    "nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float", "quant_scale",
    "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict", "stores_quant_config", "channel_wise",
    "optimize", "round_zero",
)  # fmt: skip
_STORED: Final = (torch.uint8, torch.int32, *FLOATS)
_BITS: Final = (1, 2, 3, 4, 8)
_INTEGERS: Final = (torch.int32, torch.int64, torch.int16, torch.uint8, torch.int8)


class HQQ:
    name: Final = "hqq"
    parts: Final = ("W_q", "scale", "zero", *_SETTINGS)

    def __init__(self, settings: Settings) -> None:
        inner = settings.section("quant_config")
        for each in ("scale_quant_params", "zero_quant_params"):
            if inner.values.get(each):
                raise inner.fail(each, "is not supported: scales and zeros must be floats")
        weights = inner.section("weight_quant_params") if inner.values else settings
        weights.refuse_unless("nbits", _BITS)
        self._bits = weights.integer("nbits", 4)
        self._axis = weights.integer("axis", 1, 0, 1)

    def holds(self, parts: Parts) -> bool:
        return "W_q" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        n, k = (int(size) for size in parts.shaped("shape", _INTEGERS, 2))
        if n < 1 or k < 1:
            raise parts.fail("shape", f"says {[n, k]}, which is not that of a matrix")
        return n, k

    def bits(self, parts: Parts) -> int:
        return held_bits(self._stored_bits(parts))

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        n, k = self.shape(parts)
        bits, axis = self._stored_bits(parts), _number(parts, "axis", (0, 1), self._axis)
        groups = (-1, 1) if axis == 1 else (1, -1)
        scales, zeros = (parts.get(part, FLOATS).to(torch.float32).reshape(groups) for part in ("scale", "zero"))
        num_groups = scales.numel()
        if zeros.numel() not in (1, num_groups) or num_groups < 1 or n * k % num_groups:
            raise parts.fail("scale", f"has {num_groups} groups, which does not fit a matrix {[n, k]}")
        group = n * k // num_groups
        rows, columns = (num_groups, group) if axis == 1 else (group, num_groups)
        codes = _unpacked(parts, bits, rows, columns)
        if axis == 1 and k % group == 0:
            mins = -zeros * scales
            return QuantizedWeight(codes.view(n, k), held_bits(bits), group, scales.view(n, -1), mins.view(n, -1))
        # Of axis 0 the groups are columns of the flattened matrix, which no packed form has.
        return ((codes.to(torch.float32) - zeros) * scales).view(n, k)

    def _stored_bits(self, parts: Parts) -> int:
        return _number(parts, "nbits", _BITS, self._bits)


def _number(parts: Parts, part: str, allowed: Collection[int], default: int) -> int:
    """A setting that the module may have of its own."""
    if part not in parts:
        return default
    value = int(parts.get(part, _INTEGERS).flatten()[0])
    if value not in allowed:
        raise parts.fail(part, f"is {value}, which is not supported")
    return value


def _unpacked(parts: Parts, bits: int, rows: int, columns: int) -> Tensor:
    """uint8 [rows, columns]."""
    stored = parts.matrix("W_q", _STORED)
    if stored.is_floating_point():  # view_as_float: the same bytes
        stored = stored.contiguous().view(torch.int32 if bits == 3 else torch.uint8)
    per_item = {1: 8, 2: 4, 3: 10, 4: 2, 8: 1}[bits]
    shifts = [bits * i for i in reversed(range(per_item))]
    values = torch.cat([(stored >> shift & (1 << bits) - 1).to(torch.uint8) for shift in shifts])
    if len(values) < rows or len(values) - rows >= per_item or values.shape[1] != columns:
        raise parts.fail("W_q", f"has the shape {list(stored.shape)}, which does not fit {[rows, columns]} values")
    return values[:rows].contiguous()
