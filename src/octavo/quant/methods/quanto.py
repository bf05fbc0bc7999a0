"""quanto: integers of 2, 4 or 8 bits, and float8, as its library saves a model (beside it stands `quanto_qmap.json`).

8 bits   weight._data int8 or float8 [N, K], weight._scale float [N, 1];                         w = scale * data
2, 4     weight._data._data uint8 [ceil(R / p), C], p values a byte: the matrix as groups [R, C], its rows in p equal
         parts, the first in the lowest bits; weight._scale float [R, 1], weight._shift [R, 1]
         w = scale * u - shift where the shift is a float, scale * (u - shift) where it is an integer

Groups are runs of the flattened matrix, so that the files say how many values it has, and not its shape: that is the
model's (`Parts.expected`).
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.float8 import FLOAT8S
from octavo.quant.methods.parts import BYTES, FLOATS, Parts, Settings, held_bits
from octavo.quant.packed import QuantizedWeight, exact_scales

_WEIGHTS: Final = ("qint2", "qint4", "qint8", "qfloat8", "qfloat8_e4m3fn", "qfloat8_e5m2", "none")
_NAMES: Final = ("int2", "int4", "int8", "float8")
_SHIFTS: Final = (*FLOATS, torch.int8, torch.uint8)
_PACKED: Final = "weight._data._data"


class Quanto:
    name: Final = "quanto"
    parts: Final = ("weight._data", _PACKED, "weight._scale", "weight._shift", "input_scale", "output_scale")

    def __init__(self, settings: Settings) -> None:
        settings.refuse_unless("weights", _NAMES)
        modules = settings.section("modules")
        self._kinds = {name: self._kind(modules.section(name)) for name in modules.values}

    @staticmethod
    def _kind(module: Settings) -> str:
        module.refuse_unless("weights", _WEIGHTS)
        module.refuse_unless("activations", ("none",), "is not supported: octavo quantizes activations by itself")
        return str(module.values.get("weights"))

    def holds(self, parts: Parts) -> bool:
        return "weight._data" in parts or _PACKED in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        if "weight._data" in parts:
            n, k = parts.matrix("weight._data", (torch.int8, *FLOAT8S)).shape
            return n, k
        rows, columns = self._groups(parts)
        if parts.expected is not None and math.prod(parts.expected) == rows * columns:
            return parts.expected
        return rows, columns

    def bits(self, parts: Parts) -> int:
        return 8 if "weight._data" in parts else held_bits(self._stored_bits(parts))

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        n, k = self.shape(parts)
        if "weight._data" in parts:
            return _bytes(parts, n)
        rows, columns = self._groups(parts)
        codes = _unpacked(parts, self._stored_bits(parts), rows)
        scales = parts.shaped("weight._scale", FLOATS, rows, 1)
        shifts = parts.shaped("weight._shift", _SHIFTS, rows, 1)
        if shifts.is_floating_point():
            wide, mins = scales.to(torch.float32), -shifts.to(torch.float32)
        else:  # taken off before the product, as integers
            wide = scales.to(torch.float32)
            mins = -(wide * shifts.to(torch.float32))
        if k % columns:
            raise parts.fail(_PACKED, f"has groups of {columns}, which do not fit a matrix {[n, k]}")
        groups = (n, k // columns)
        bits = held_bits(self._stored_bits(parts))
        return QuantizedWeight(codes.view(n, k), bits, columns, wide.view(groups), mins.view(groups))

    def _groups(self, parts: Parts) -> tuple[int, int]:
        """Rows and columns of the matrix as groups."""
        stored = parts.matrix(_PACKED, BYTES)
        rows = parts.matrix("weight._scale", FLOATS).shape[0]
        per_byte = 8 // self._stored_bits(parts)
        if len(stored) != -(-rows // per_byte):
            raise parts.fail(_PACKED, f"has {len(stored)} rows of {per_byte} values a byte for {rows} groups")
        return rows, stored.shape[1]

    def _stored_bits(self, parts: Parts) -> int:
        """As the list of modules says; else as many as make the groups that have scales."""
        kind = self._kinds.get(parts.module)
        if kind in ("qint2", "qint4"):
            return int(kind[-1])
        rows, stored = len(parts.matrix("weight._scale", FLOATS)), len(parts.matrix(_PACKED, BYTES))
        return 4 if stored == -(-rows // 2) else 2


def _bytes(parts: Parts, n: int) -> QuantizedWeight:
    data = parts.matrix("weight._data", (torch.int8, *FLOAT8S))
    scales = parts.get("weight._scale", FLOATS)
    if scales.numel() not in (1, n):
        raise parts.fail("weight._scale", f"has the shape {list(scales.shape)}, which does not fit {n} rows")
    scales = scales.reshape(-1, 1).expand(n, 1)
    if data.dtype == torch.int8:  # two's complement to an offset of 128 is one flipped bit
        return QuantizedWeight(data.view(torch.uint8) ^ 128, 8, data.shape[1], exact_scales(scales), zero=128)
    table = torch.arange(256, dtype=torch.uint8).view(data.dtype).to(torch.float32)
    return QuantizedWeight(data.view(torch.uint8), 8, data.shape[1], scales.to(torch.float32).contiguous(), table=table)


def _unpacked(parts: Parts, bits: int, rows: int) -> Tensor:
    """uint8 [rows, columns]."""
    stored = parts.matrix(_PACKED, BYTES)
    return torch.cat([stored >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)])[:rows].contiguous()
