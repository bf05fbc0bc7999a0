"""Codebooks: AQLM, whose codes name vectors, and SqueezeLLM, which has 16 values for each row.

    AQLM        codes int [N / o, K / i, C] (signed, meant modulo 2^bits), codebooks float [C, 2^bits, o, i],
                scales float [N / o, 1, 1, 1];  w = scale * the sum of the C vectors that the codes name
    SqueezeLLM  qweight int32 [K / 8, N] along K, lookup_table float [N, 16];  w = lookup_table[n][u]

No packed form has such values: AQLM becomes float32 and SqueezeLLM the floats of its table, which is exact, and takes
as much memory as a model that is not quantized.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import FLOATS, WORDS, Parts, Settings, unpack_bits

_CODES: Final = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
#: Values that are put together at a time.
_PIECE: Final = 4 << 20


class AQLM:
    name: Final = "aqlm"
    parts: Final = ("codes", "codebooks", "scales")

    def __init__(self, settings: Settings) -> None:
        for key in ("in_group_size", "out_group_size", "num_codebooks", "nbits_per_codebook"):
            settings.integer(key, 1, 1, 1 << 16)

    def holds(self, parts: Parts) -> bool:
        return "codes" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        codes, books = parts.get("codes", _CODES), parts.get("codebooks", FLOATS)
        if codes.dim() != 3 or books.dim() != 4 or codes.shape[2] != books.shape[0]:
            raise parts.fail("codes", f"has the shape {list(codes.shape)}, the codebooks {list(books.shape)}")
        return codes.shape[0] * books.shape[2], codes.shape[1] * books.shape[3]

    def bits(self, parts: Parts) -> int:
        return 32

    def weight(self, parts: Parts) -> Tensor:
        n, k = self.shape(parts)
        books = parts.get("codebooks", FLOATS).to(torch.float32)
        num_books, size, rows, _ = books.shape
        codes = parts.get("codes", _CODES)
        scales = parts.shaped("scales", FLOATS, len(codes), 1, 1, 1).to(torch.float32)
        weight = torch.empty(n, k)
        step = max(1, _PIECE // (rows * k))
        for at in range(0, len(codes), step):
            chosen = codes[at : at + step].to(torch.int64) % size
            vectors = books[0][chosen[..., 0]]
            for book in range(1, num_books):
                vectors = vectors + books[book][chosen[..., book]]
            # [outer rows, outer columns, rows, columns] -> rows of the matrix.
            blocks = (vectors * scales[at : at + step]).transpose(1, 2)
            weight[at * rows : (at + len(chosen)) * rows] = blocks.reshape(-1, k)
        return weight


class SqueezeLLM:
    name: Final = "squeezellm"
    parts: Final = ("qweight", "lookup_table")

    def __init__(self, settings: Settings) -> None:
        settings.refuse_unless("wbits", (4,))

    def holds(self, parts: Parts) -> bool:
        return "qweight" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        words, n = parts.matrix("qweight", WORDS).shape
        return n, 8 * words

    def bits(self, parts: Parts) -> int:
        return parts.get("lookup_table", FLOATS).element_size() * 8

    def weight(self, parts: Parts) -> Tensor:
        n, _ = self.shape(parts)
        table = parts.shaped("lookup_table", FLOATS, n, 16)
        codes = unpack_bits(parts.get("qweight", WORDS).t(), 4)
        return table.gather(1, codes.to(torch.int64))
