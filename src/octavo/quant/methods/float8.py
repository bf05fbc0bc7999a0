"""float8 with scales of the matrix, its rows, or its blocks: fp8 (Neural Magic's, DeepSeek's, Qwen's), fbgemm_fp8.

    weight float8 [N, K]
    weight_scale      float [], [1], [N, 1] or [N, G]      w = scale * weight
    weight_scale_inv  float [N / 128, K / 128]             a scale as well, whatever its name says

Scales of activations (`input_scale`, `activation_scale_ub`) are for devices that multiply float8 by float8.
"""

from __future__ import annotations

from typing import Final

import torch

from octavo.quant.methods.parts import FLOATS, Parts, Settings, grouped_scales
from octavo.quant.packed import QuantizedWeight

FLOAT8S: Final = (torch.float8_e4m3fn, torch.float8_e5m2)
#: The last two are powers of two in one byte.
SCALES: Final = (*FLOATS, torch.float8_e8m0fnu, torch.uint8)


class Float8:
    parts: Final = (
        "weight", "weight_scale", "weight_scale_inv", "input_scale", "act_scale", "activation_scale", "input_scale_ub",
    )  # fmt: skip

    def __init__(self, settings: Settings, name: str = "fp8") -> None:
        self.name: Final = name
        settings.refuse_unless("activation_scheme", ("dynamic", "static"))
        settings.refuse_unless("fmt", ("e4m3",))
        self._block = read_block(settings, "weight_block_size")

    def holds(self, parts: Parts) -> bool:
        return is_float8(parts)

    def shape(self, parts: Parts) -> tuple[int, int]:
        n, k = parts.matrix("weight", FLOAT8S).shape
        return n, k

    def bits(self, parts: Parts) -> int:
        return 8

    def weight(self, parts: Parts) -> QuantizedWeight:
        part = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
        return float8_weight(parts, part, self._block)


def is_float8(parts: Parts) -> bool:
    """Whether the module's weight is of float8."""
    return parts.dtype("weight") in FLOAT8S


def read_block(settings: Settings, key: str) -> tuple[int, int] | None:
    """Rows and columns of a block; None if the configuration has none."""
    block = settings.values.get(key)
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise settings.fail(key, "is not a pair of whole numbers")
    return block[0], block[1]


def float8_weight(parts: Parts, part: str, block: tuple[int, int] | None) -> QuantizedWeight:
    """`weight` of float8 times the scales of `part`."""
    weight = parts.matrix("weight", FLOAT8S)
    n, k = weight.shape
    stored = parts.get(part, SCALES)
    stored = stored.view(torch.float8_e8m0fnu) if stored.dtype == torch.uint8 else stored
    scales = grouped_scales(parts, part, stored, n, k, block).to(torch.float32).contiguous()
    table = torch.arange(256, dtype=torch.uint8).view(weight.dtype).to(torch.float32)
    return QuantizedWeight(weight.view(torch.uint8), 8, k // scales.shape[1], scales, table=table)
