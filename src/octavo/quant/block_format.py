"""How the blocks of a file hold their values: bit fields that are put together to a byte a value."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from octavo import _cpu

# (offset, bytes, width, bits, shift): `Fields` of csrc/cpu/block_format.h.
Fields = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class BlockFormat:
    """`fields` say where a block holds some bits of each of its values; `flip` names bits of all values that are stored
    the other way round; `table`: what values below 16 stand for, if they are not themselves."""

    block_values: int
    block_bytes: int
    fields: tuple[Fields, ...]
    flip: int = 0
    table: tuple[int, ...] = ()

    @functools.cached_property
    def native(self) -> _cpu.BlockFormat:
        """The same for the CPU's kernels. Raises ValueError where the fields do not fit the block."""
        from octavo import _cpu

        return _cpu.BlockFormat(self.block_values, self.block_bytes, self.fields, self.flip, self.table)

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` values. Raises ValueError if they are no whole blocks."""
        if columns % self.block_values:
            raise ValueError("a row is whole blocks")
        return columns // self.block_values * self.block_bytes

    def unpack(self, rows: Tensor) -> Tensor:
        """The values, uint8 [N, K], of rows in blocks, uint8 [N, bytes of a row]. The kernels do the same, faster."""
        blocks = rows.reshape(-1, self.block_bytes)
        values = torch.zeros(len(blocks), self.block_values, dtype=torch.uint8)
        for offset, nbytes, width, bits, shift in self.fields:
            runs = blocks[:, offset : offset + nbytes].reshape(len(blocks), -1, 1, width)
            places = torch.arange(0, 8, bits, dtype=torch.uint8).view(-1, 1)
            # A run holds the lowest fields of all its bytes, then the next: [B, runs, 8 / bits, width].
            values |= ((runs >> places & (1 << bits) - 1) << shift).reshape(len(blocks), -1)
        if self.table:
            values = torch.tensor(self.table, dtype=torch.uint8)[(values & 15).long()]
        return (values ^ self.flip).view(len(rows), -1)
