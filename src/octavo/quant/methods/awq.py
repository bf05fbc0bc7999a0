"""AWQ in the layout gemm: integers of 4 bits, packed along N in an order that suits a GPU's tensor cores.

qweight int32 [K, N / 8], qzeros int32 [G, N / 8], scales float [G, N]
w[n, k] = scales[k / group, n] * (u - z)
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import FLOATS, WORDS, Parts, Settings, affine
from octavo.quant.packed import QuantizedWeight

#: Which of the eight columns of a word its nibbles hold, the lowest first.
_COLUMNS: Final = (0, 2, 4, 6, 1, 3, 5, 7)


class AWQ:
    name: Final = "awq"
    parts: Final = ("qweight", "qzeros", "scales")

    def __init__(self, settings: Settings) -> None:
        bits = "w_bit" if settings.values.get("bits") is None else "bits"
        settings.refuse_unless(bits, (4,))
        version = settings.values.get("version")
        if version is not None and str(version).lower() != "gemm":
            raise settings.fail("version", "is not supported: convert the checkpoint to the version gemm")

    def holds(self, parts: Parts) -> bool:
        return "qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        k, words = parts.matrix("qweight", WORDS).shape
        return 8 * words, k

    def bits(self, parts: Parts) -> int:
        return 4

    def weight(self, parts: Parts) -> QuantizedWeight:
        n, k = self.shape(parts)
        scales = parts.matrix("scales", FLOATS)
        num_groups = len(scales)
        parts.shaped("scales", FLOATS, num_groups, n)
        if k % num_groups:
            raise parts.fail("scales", f"has {num_groups} groups, which does not fit {k} columns")
        zeros = parts.shaped("qzeros", WORDS, num_groups, n // 8)
        return affine(_columns(parts.get("qweight", WORDS)), 4, scales.t(), _columns(zeros))


def _columns(words: Tensor) -> Tensor:
    """int32 [R, N / 8] -> uint8 [N, R]."""
    turned = words.t().contiguous()
    values = torch.empty(len(turned), 8, turned.shape[1], dtype=torch.uint8)
    for nibble, column in enumerate(_COLUMNS):
        values[:, column] = turned >> 4 * nibble & 15
    return values.view(-1, turned.shape[1])
