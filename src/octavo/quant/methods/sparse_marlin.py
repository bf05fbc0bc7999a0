"""Marlin of sparse weights: integers of 4 or 8 bits of which two in four are kept, in the order of a GPU's kernel.

B_24, weight_packed   int32 [K / 32, 16 N / (32 / bits)]: the kept values [K / 2, N], as tiles of 16 x 16 side by side,
                      four tiles' values in an order of the kernel's
B_meta, meta          int16 [K / 32, 2 N]: two bits for each kept value, its place among four columns
s, scale_packed       float [G, N], columns in an order too;                      w = s * (u - 2^(bits - 1))

The first names are those of GPTQ's tools (gptq_marlin_24), the others those of compressed-tensors (marlin-24).
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import FLOATS, WORDS, Parts, Settings, affine, unpack_bits
from octavo.quant.packed import QuantizedWeight

_TILE: Final = 16
_META: Final = (torch.int16,)
#: In which order the values of one word stand.
_INTERLEAVED: Final = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
_META_ROWS: Final = 64


class SparseMarlin:
    def __init__(self, name: str, values: str, places: str, scales: str) -> None:
        """The method's name, and those of its parts."""
        self.name: Final = name
        self.parts: Final = (values, places, scales, "workspace")
        self._values, self._places, self._scales = values, places, scales

    def holds(self, parts: Parts) -> bool:
        return self._values in parts and self._places in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        n = parts.matrix(self._scales, FLOATS).shape[1]
        k = 2 * _TILE * parts.matrix(self._values, WORDS).shape[0]
        if n % _META_ROWS:
            raise parts.fail(self._scales, f"has {n} columns, which is no whole tiles")
        return n, k

    def bits(self, parts: Parts) -> int:
        n = self.shape(parts)[0]
        width = parts.matrix(self._values, WORDS).shape[1]
        bits = 32 * width // (_TILE * n)
        if bits not in _INTERLEAVED or width * 32 != _TILE * n * bits:
            raise parts.fail(self._values, f"has {width} words a row, which does not fit {n} rows of 4 or 8 bits")
        return bits

    def weight(self, parts: Parts) -> QuantizedWeight:
        n, k = self.shape(parts)
        bits = self.bits(parts)
        scales = parts.matrix(self._scales, FLOATS)
        if k % len(scales):
            raise parts.fail(self._scales, f"has {len(scales)} groups, which does not fit {k} columns")
        if len(scales) > 1:
            scales = _placed(scales)
        zero = 1 << bits - 1
        values = torch.full((n, k), zero, dtype=torch.uint8)  # those that were not kept are zeros
        values.scatter_(1, self._columns(parts, n, k), _kept(parts.get(self._values, WORDS), bits, n, k))
        return affine(values, bits, scales.t(), zero)

    def _columns(self, parts: Parts, n: int, k: int) -> Tensor:
        """int64 [N, K / 2]: in which column each kept value is."""
        words = parts.shaped(self._places, _META, k // 32, 2 * n).reshape(-1)[_meta_order(n, k // 16)]
        places = (words.to(torch.int64).unsqueeze(-1) >> torch.arange(0, 16, 2) & 3).view(n, -1, 2)
        if bool((places[..., 0] >= places[..., 1]).any()):
            raise parts.fail(self._places, "puts two kept values in one place, or out of their order")
        return (places + 4 * torch.arange(k // 4).unsqueeze(-1)).view(n, -1)


def gptq_marlin_24(settings: Settings) -> SparseMarlin:
    settings.refuse_unless("bits", tuple(_INTERLEAVED))
    settings.refuse_unless("desc_act", (False,))
    settings.refuse_unless("sym", (True,))
    return SparseMarlin("gptq_marlin_24", "B_24", "B_meta", "s")


def _kept(words: Tensor, bits: int, n: int, k: int) -> Tensor:
    """uint8 [N, K / 2]."""
    places = _order(bits)
    stored = unpack_bits(words, bits).view(-1, len(places))
    tiles = torch.empty_like(stored)
    tiles[:, places] = stored
    return tiles.view(k // 32, n // _TILE, _TILE, _TILE).permute(1, 3, 0, 2).reshape(n, k // 2)


def _order(bits: int) -> Tensor:
    """Where each stored value is among those of four tiles."""
    order = []
    for thread in range(32):
        column = thread // 4
        pairs = 2 * (thread % 4)
        mine = [
            16 * row + 256 * (column // 2) + 8 * (column % 2) + 4 * block
            for block in (0, 1)
            for row in (pairs, pairs + 1, pairs + 8, pairs + 9)
        ]
        order += [place + j for j in range(4) for place in mine]
    return torch.tensor(order).view(-1, len(_INTERLEAVED[bits]))[:, list(_INTERLEAVED[bits])].flatten()


def _meta_order(n: int, width: int) -> Tensor:
    """int64 [N, width]: where the word of places of each row and run of 16 columns is stored."""
    rows, columns = torch.arange(n).view(-1, 1), torch.arange(width).view(1, -1)
    placed = rows // 64 * 64 + rows % 2 * 2 + rows % 8 // 4 + rows % 4 // 2 * 32 + rows % 64 // 8 * 4
    # Of each block of 2 x 2 two corners change places; pairs of columns lie side by side.
    swap = ((placed % 2 == 0) & (columns % 2 == 1)).int() - ((placed % 2 == 1) & (columns % 2 == 0)).int()
    placed, columns = placed + swap, columns - swap
    return columns // 2 * 2 * n + 2 * placed + columns % 2


def _placed(scales: Tensor) -> Tensor:
    """[G, N] whose columns stood in the kernel's order, eight by eight."""
    stored = scales.reshape(-1, 8)
    placed = torch.empty_like(stored)
    placed[:, [0, 4, 1, 5, 2, 6, 3, 7]] = stored
    return placed.view(scales.shape)
