"""Marlin and QQQ: integers of 4 bits in the order in which a kernel for GPUs reads them.

B        int32 [K / 16, 2 N]: tiles of 16 x 16 values side by side, four tiles' values in an order of the kernel's
Marlin   s float [G, N], columns in an order too;                            w = s * (u - 8)
QQQ      s_group float16 [G, N], s_channel float32 [1, N], ordered;          w = s_group * s_channel * (u - 8)
         one group: s_group is empty, u in two's complement;                 w = 16 * s_channel * u
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import FLOATS, WORDS, Parts, Settings, affine, unpack_bits
from octavo.quant.packed import QuantizedWeight

_TILE: Final = 16
#: Which nibble of a word a value is in.
_NIBBLES: Final = (0, 2, 4, 6, 1, 3, 5, 7)
_NIBBLES_OF_ROWS: Final = (4, 0, 5, 1, 6, 2, 7, 3)  # QQQ with one group


class _Tiles:
    """What both have alike: where a matrix is, and its size."""

    def holds(self, parts: Parts) -> bool:
        return "B" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        rows, words = parts.matrix("B", WORDS).shape
        if words % 128 or rows % 4:
            raise parts.fail("B", f"has the shape {[rows, words]}, which is no whole tiles")
        return words // 2, rows * _TILE

    def bits(self, parts: Parts) -> int:
        return 4


class Marlin(_Tiles):
    name: Final = "marlin"
    parts: Final = ("B", "s", "workspace")

    def __init__(self, settings: Settings) -> None:
        settings.refuse_unless("bits", (4,))
        settings.refuse_unless("desc_act", (False,))

    def weight(self, parts: Parts) -> QuantizedWeight:
        n, k = self.shape(parts)
        scales = _scales(parts, "s", n, k)
        scales = _placed(scales, _columns_of_groups() if len(scales) > 1 else _columns_of_rows())
        rows = [row for i in range(4) for row in (2 * i, 2 * i + 1, 2 * (i + 4), 2 * (i + 4) + 1)]
        return affine(_values(parts, n, k, rows, _NIBBLES), 4, scales.t(), 8)


class QQQ(_Tiles):
    name: Final = "qqq"
    parts: Final = ("B", "s_channel", "s_group", "workspace")

    def __init__(self, settings: Settings) -> None:
        settings.refuse_unless("wbits", (4,))
        settings.refuse_unless("bits", (4,))
        settings.refuse_unless("desc_act", (False,))

    def weight(self, parts: Parts) -> QuantizedWeight:
        n, k = self.shape(parts)
        channel = _placed(parts.shaped("s_channel", FLOATS, 1, n).to(torch.float32), _columns_of_rows())
        rows = list(range(_TILE))
        if "s_group" not in parts:
            # An offset of 8 to two's complement is one flipped bit.
            return affine(_values(parts, n, k, rows, _NIBBLES_OF_ROWS) ^ 8, 4, (16 * channel).t(), 8)
        scales = _placed(_scales(parts, "s_group", n, k), _columns_of_groups()).to(torch.float32) * channel
        return affine(_values(parts, n, k, rows, _NIBBLES), 4, scales.t(), 8)


def _scales(parts: Parts, part: str, n: int, k: int) -> Tensor:
    """[G, N] of groups of one size."""
    scales = parts.matrix(part, FLOATS)
    if scales.shape[1] != n or k % len(scales):
        raise parts.fail(part, f"has the shape {list(scales.shape)}, which does not fit a matrix {[n, k]}")
    return scales


def _values(parts: Parts, n: int, k: int, rows: list[int], nibbles: tuple[int, ...]) -> Tensor:
    """uint8 [N, K]. `rows`: of the 16 of a tile, four for each quarter of 32 threads' values."""
    order = []
    for thread in range(32):
        quarter = rows[4 * (thread % 4) : 4 * (thread % 4) + 4]
        mine = [16 * row + thread // 4 + 8 * half for half in (0, 1) for row in quarter]
        order += [place + 256 * tile for tile in range(4) for place in mine]
    places = torch.tensor(order).view(-1, 8)[:, list(nibbles)].flatten()
    stored = unpack_bits(parts.get("B", WORDS), 4).view(-1, len(places))
    tiles = torch.empty_like(stored)
    tiles[:, places] = stored
    return tiles.view(k // _TILE, n // _TILE, _TILE, _TILE).permute(1, 3, 0, 2).reshape(n, k)


def _columns_of_groups() -> Tensor:
    return torch.tensor([i + 8 * j for i in range(8) for j in range(8)])


def _columns_of_rows() -> Tensor:
    return torch.tensor([2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)])


def _placed(scales: Tensor, order: Tensor) -> Tensor:
    """[G, N] whose columns stood in an order, run by run."""
    stored = scales.reshape(-1, len(order))
    placed = torch.empty_like(stored)
    placed[:, order] = stored
    return placed.view(scales.shape)
