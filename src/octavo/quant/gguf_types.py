"""GGUF tensor data -> float tensors and `QuantizedWeight`, without loss.

A block format stores a run of 32 or 256 values along K: packed integers, and scales of one or two levels. The values
stay in the file's blocks, with word of where a block holds their bits, until a device packs them; scales and mins are
few, and are read here, from blocks uint8 [B, bytes of a block] to [B, groups of a block].

Two-level scales (the K formats) are a float16 factor [B, 1] and int8 steps, and stay so. Formats that are no integer
grid (codebooks of vectors, ternary) come out as float32 through the tables of the `gguf` package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.files.gguf import TENSOR_TYPES
from octavo.quant import mxfp4
from octavo.quant.block_format import BlockFormat, Fields
from octavo.quant.packed import FileValues, QuantizedWeight, ScaleLevels, Scales

ScalesMins = tuple[Scales, Scales | None]

FLOAT_TYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DEQUANTIZED_TYPES: Final = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "NVFP4"}
)
_BLOCK_SHAPES: Final = {name: (values, nbytes) for name, values, nbytes in TENSOR_TYPES.values()}
# The sixteen levels of IQ4_NL and IQ4_XS, from a zero of 128.
_IQ4_VALUES: Final = (1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241)


def transcode(data: memoryview, type_name: str, shape: tuple[int, ...], name: str) -> Tensor | QuantizedWeight:
    """The weight that `data` holds. `name` is for the message of the `CheckpointError` if the type is no weight's.

    Float types are views of `data`; a matrix in a block format becomes a `QuantizedWeight`; all else float32.
    """
    if type_name in FLOAT_TYPES:
        return torch.frombuffer(data, dtype=FLOAT_TYPES[type_name]).view(shape)
    if type_name in FORMATS:
        if len(shape) == 2:
            return _quantized(data, type_name, (shape[0], shape[1]))
        return _quantized(data, type_name, (1, math.prod(shape))).dequantize().view(shape)
    if type_name in DEQUANTIZED_TYPES:
        return _dequantized(data, type_name, shape, name)
    raise CheckpointError(f"tensor {name!r}: weights of type {type_name} are not supported")


def _quantized(data: memoryview, type_name: str, shape: tuple[int, int]) -> QuantizedWeight:
    fmt = FORMATS[type_name]
    blocks = torch.frombuffer(data, dtype=torch.uint8).view(-1, _BLOCK_SHAPES[type_name][1])
    scales, mins = (None if part is None else _by_row(part, shape[0]) for part in fmt.scales(blocks))
    assert scales is not None
    block_format = BlockFormat(*_BLOCK_SHAPES[type_name], fmt.fields, fmt.flip, fmt.table)
    values = FileValues(blocks.view(shape[0], -1), block_format, shape[1])
    return QuantizedWeight(values, fmt.bits, fmt.group_size, scales, mins, fmt.zero)


def _by_row(scales: Scales, rows: int) -> Scales:
    """Scales of blocks as [rows, groups]."""
    if isinstance(scales, ScaleLevels):
        return ScaleLevels(scales.factors.view(rows, -1), scales.steps.view(rows, -1))
    return scales.view(rows, -1)


def _dequantized(data: memoryview, type_name: str, shape: tuple[int, ...], name: str) -> Tensor:
    # Slow to import, optional, and needed by none of the common formats.
    try:
        import gguf
    except ImportError:
        raise CheckpointError(f"tensor {name!r}: weights of type {type_name} need the package 'gguf'") from None
    import numpy as np

    rows = np.frombuffer(data, dtype=np.uint8).reshape(-1, _BLOCK_SHAPES[type_name][1])
    values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type_name])
    return torch.from_numpy(values).view(shape)


# Scales and mins.


def _half(blocks: Tensor, begin: int) -> Tensor:
    """The float16 at byte `begin` of each block, [B, 1]."""
    return blocks[:, begin : begin + 2].contiguous().view(torch.float16)


def _levels(blocks: Tensor, begin: int, steps: Tensor) -> ScaleLevels:
    """Scales whose factor is the float16 at byte `begin`."""
    return ScaleLevels(_half(blocks, begin), steps.to(torch.int8).contiguous())


def _negated(blocks: Tensor, begin: int, steps: Tensor) -> ScaleLevels:
    """Mins: K formats tell what is taken away."""
    return ScaleLevels(_half(blocks, begin).neg(), steps.to(torch.int8).contiguous())


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [B, n] -> [B, 2 n]: all low nibbles, then all high ones."""
    return torch.cat([packed & 15, packed >> 4], dim=1)


def _one_scale(blocks: Tensor) -> ScalesMins:
    return _half(blocks, 0), None


def _power_of_two(blocks: Tensor) -> ScalesMins:
    return mxfp4.scales_of(blocks[:, :1]), None


def _scale_and_min(blocks: Tensor) -> ScalesMins:
    return _half(blocks, 0), _half(blocks, 2)


def _q2_k(blocks: Tensor) -> ScalesMins:
    fields = blocks[:, :16]
    return _levels(blocks, 80, fields & 15), _negated(blocks, 82, fields >> 4)


def _q3_k(blocks: Tensor) -> ScalesMins:
    low = _nibbles(blocks[:, 96:104])  # [B, 16]
    high = torch.cat([(blocks[:, 104:108] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)  # [B, 16]
    return _levels(blocks, 108, (low | high << 4).to(torch.int8) - 32), None


def _q4_k_and_q5_k(blocks: Tensor) -> ScalesMins:
    """[B, 8] each: 6-bit fields in bytes 4..16, float16 factors before them.

    Of fields 0..3 the bytes hold all six bits; of fields 4..7 the low four stand in the last bytes and the high
    two on top of the former.
    """
    scale, low, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([scale & 63, rest & 15 | scale >> 2 & 48], dim=1)
    mins = torch.cat([low & 63, rest >> 4 | low >> 2 & 48], dim=1)
    return _levels(blocks, 0, scales), _negated(blocks, 2, mins)


def _q6_k(blocks: Tensor) -> ScalesMins:
    return _levels(blocks, 208, blocks[:, 192:208].contiguous().view(torch.int8)), None


def _iq4_xs(blocks: Tensor) -> ScalesMins:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
    high = (blocks[:, 2:4].unsqueeze(-1) >> shifts & 3).view(-1, 8)
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=-1).view(-1, 8)
    return _levels(blocks, 0, (low | high << 4).to(torch.int8) - 32), None


@dataclass(frozen=True)
class _Format:
    """How a block format maps to `QuantizedWeight`, whose fields the first three are; the others are for its values."""

    bits: int
    group_size: int
    zero: int
    fields: tuple[Fields, ...]
    scales: Callable[[Tensor], ScalesMins]
    flip: int = 0
    table: tuple[int, ...] = ()


def _low_nibbles(offset: int) -> Fields:
    """Of 32 values: byte i holds values i and 16 + i."""
    return offset, 16, 16, 4, 0


def _fifth_bits(offset: int) -> Fields:
    return offset, 4, 1, 1, 4


FORMATS: Final = {
    # 32 values, float16 scale.
    "Q4_0": _Format(4, 32, 8, (_low_nibbles(2),), _one_scale),
    "Q4_1": _Format(4, 32, 0, (_low_nibbles(4),), _scale_and_min),
    "Q5_0": _Format(5, 32, 16, (_low_nibbles(6), _fifth_bits(2)), _one_scale),
    "Q5_1": _Format(5, 32, 0, (_low_nibbles(8), _fifth_bits(4)), _scale_and_min),
    # Two's complement to an offset of 128 is one flipped bit.
    "Q8_0": _Format(8, 32, 128, ((2, 32, 32, 8, 0),), _one_scale, flip=128),
    # 256 values, float16 scale of small integer scales.
    "Q2_K": _Format(4, 16, 0, ((16, 64, 32, 2, 0),), _q2_k),
    "Q3_K": _Format(4, 16, 4, ((32, 64, 32, 2, 0), (0, 32, 32, 1, 2)), _q3_k),
    "Q4_K": _Format(4, 32, 0, ((16, 128, 32, 4, 0),), _q4_k_and_q5_k),
    "Q5_K": _Format(5, 32, 0, ((48, 128, 32, 4, 0), (16, 32, 32, 1, 4)), _q4_k_and_q5_k),
    "Q6_K": _Format(6, 16, 32, ((0, 128, 64, 4, 0), (128, 64, 32, 2, 4)), _q6_k),
    # 32 values, one byte for the exponent of the scale.
    "MXFP4": _Format(mxfp4.BITS, 32, mxfp4.ZERO, (_low_nibbles(1),), _power_of_two, table=mxfp4.TABLE),
    "IQ4_NL": _Format(8, 32, 128, (_low_nibbles(2),), _one_scale, table=_IQ4_VALUES),
    "IQ4_XS": _Format(8, 32, 128, ((8, 128, 16, 4, 0),), _iq4_xs, table=_IQ4_VALUES),
}
