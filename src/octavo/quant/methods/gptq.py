"""GPTQ: integers of 2, 3, 4 or 8 bits in groups along K, which may be a choice of columns (desc_act).

qweight int32 [K * bits / 32, N]    along K      scales float [G, N]
qzeros  int32 [G, N * bits / 32]    along N      g_idx  int32 [K], the group of each column

w[n, k] = scales[g_idx[k], n] * (u - z)          z is stored as z - 1, but not so in the format gptq_v2
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import FLOATS, WORDS, Parts, Settings, affine, column_order, held_bits, unpack_bits
from octavo.quant.packed import QuantizedWeight

_INTEGERS: Final = (torch.int32, torch.int64)


class GPTQ:
    """Bits and groups follow from the shapes, so that rules for single modules (`dynamic`) need not be read."""

    name: Final = "gptq"
    parts: Final = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, settings: Settings) -> None:
        settings.integer("bits", 4, 2, 8)
        settings.refuse_unless("bits", (2, 3, 4, 8))
        settings.refuse_unless("checkpoint_format", ("gptq", "gptq_v2"))
        settings.refuse_unless("pack_dtype", ("int32",))
        self._group_size = settings.integer("group_size", -1, -1)
        self._zeros_are_less_one = settings.values.get("checkpoint_format") != "gptq_v2"

    def holds(self, parts: Parts) -> bool:
        return "qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        rows = parts.matrix("scales", FLOATS).shape[1]
        return rows, parts.matrix("qweight", WORDS).shape[0] * 32 // self._stored_bits(parts)

    def bits(self, parts: Parts) -> int:
        return held_bits(self._stored_bits(parts))

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        bits = self._stored_bits(parts)
        n, k = self.shape(parts)
        scales = parts.matrix("scales", FLOATS)
        num_groups = len(scales)
        words = parts.shaped("qweight", WORDS, k * bits // 32, n)
        values = unpack_bits(words.t(), bits)
        zeros = unpack_bits(parts.shaped("qzeros", WORDS, num_groups, n * bits // 32), bits)
        if self._zeros_are_less_one:
            zeros = (zeros + 1).bitwise_and_((1 << bits) - 1)
        groups = self._groups(parts, k, num_groups)
        is_regular, order = column_order(groups, num_groups)
        if not is_regular:
            return _floats(values, scales, zeros, groups)
        if order is not None:
            values = values[:, order]
        return affine(values, bits, scales.t(), zeros.t(), order)

    def _stored_bits(self, parts: Parts) -> int:
        rows = parts.matrix("scales", FLOATS).shape[1]
        bits, rest = divmod(32 * parts.matrix("qzeros", WORDS).shape[1], rows)
        if rest or bits not in (2, 3, 4, 8):
            raise parts.fail("qzeros", f"does not fit the {rows} columns of the scales with 2, 3, 4 or 8 bits")
        return bits

    def _groups(self, parts: Parts, k: int, num_groups: int) -> Tensor:
        """The group of each column, int [K]."""
        if "g_idx" in parts:
            groups = parts.shaped("g_idx", _INTEGERS, k)
            if int(groups.min()) < 0 or int(groups.max()) >= num_groups:
                raise parts.fail("g_idx", f"names groups beyond the {num_groups} of the scales")
            return groups
        # A group that does not divide K leaves a smaller one at the end.
        group = k // num_groups if k % num_groups == 0 else self._group_size
        if group < 1 or -(-k // group) != num_groups:
            raise parts.fail("scales", f"has {num_groups} groups, which does not fit {k} columns")
        return torch.arange(k) // group


def _floats(values: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor) -> Tensor:
    """The matrix as float32, for groups of several sizes."""
    groups = groups.to(torch.int64)
    offsets = values.to(torch.float32) - zeros.t().to(torch.float32)[:, groups]
    return offsets.mul_(scales.t().to(torch.float32)[:, groups])
