"""GGUF tensor data -> float tensors and `QuantizedWeight`, without loss.

A block format stores a run of 32 or 256 values along K: packed integers, and scales of one or two levels. Each
decoder below takes blocks as uint8 [B, bytes of a block] and gives

    values uint8 [B, values of a block], scales [B, groups of a block], mins like scales or None

Two-level scales (the K formats) are a float16 factor [B, 1] and int8 steps, and stay so. Formats that are no integer
grid (codebooks of vectors, ternary, FP4) come out as float32 through the tables of the `gguf` package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from octavo.errors import CheckpointError
from octavo.gguf import TENSOR_TYPES
from octavo.quant.packed import QuantizedWeight, ScaleLevels, Scales

Blocks = tuple[Tensor, Scales, Scales | None]

# Values decoded in one go: the passes over a chunk then stay within a core's cache.
CHUNK_VALUES: Final = 1 << 20

FLOAT_TYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DEQUANTIZED_TYPES: Final = frozenset(
    {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"}
)
_BLOCK_SHAPES: Final = {name: (values, nbytes) for name, values, nbytes in TENSOR_TYPES.values()}
# The sixteen levels of IQ4_NL and IQ4_XS.
_IQ4_LEVELS: Final = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


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
    block_values, block_bytes = _BLOCK_SHAPES[type_name]
    blocks = torch.frombuffer(data, dtype=torch.uint8).view(-1, block_bytes)
    values = torch.empty(blocks.shape[0], block_values, dtype=torch.uint8)
    scales: list[Scales] = []
    mins: list[Scales] = []
    step = CHUNK_VALUES // block_values
    for begin in range(0, blocks.shape[0], step):
        chunk, scale, low = fmt.decode(blocks[begin : begin + step])
        values[begin : begin + step] = chunk
        scales.append(scale)
        if low is not None:
            mins.append(low)
    low = _joined(mins, shape[0]) if mins else None
    return QuantizedWeight(values.view(shape), fmt.bits, fmt.group_size, _joined(scales, shape[0]), low, fmt.zero)


def _joined(chunks: list[Scales], rows: int) -> Scales:
    """The chunks' scales as [rows, groups]."""
    two_level = [chunk for chunk in chunks if isinstance(chunk, ScaleLevels)]
    if not two_level:
        return torch.cat([chunk for chunk in chunks if isinstance(chunk, Tensor)]).view(rows, -1)
    factors = torch.cat([chunk.factors for chunk in two_level]).view(rows, -1)
    return ScaleLevels(factors, torch.cat([chunk.steps for chunk in two_level]).view(rows, -1))


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


# Bit fields. The passes work on eight bytes at a time: a shift of the 64-bit lane moves bits across bytes, and the
# mask, the same in each byte, drops those that came from a neighbour.


_DIAGONAL: Final = int.from_bytes(bytes(1 << i for i in range(8)), "little", signed=True)


def _planes(packed: Tensor, width: int, bits: int, count: int) -> Tensor:
    """Bit fields of runs of `width` bytes, the lowest field of a whole run first.

    packed uint8 [B, runs * width] -> uint8 [B, runs * count * width], field i of a byte being (byte >> bits*i).
    """
    num_blocks = packed.shape[0]
    lanes = packed.contiguous().view(torch.int64).view(num_blocks, -1, 1, width // 8)
    out = torch.empty(num_blocks, lanes.shape[1], count, width // 8, dtype=torch.int64)
    mask = _lane((1 << bits) - 1)
    for i in range(count):
        plane = out[:, :, i : i + 1, :]
        torch.bitwise_right_shift(lanes, bits * i, out=plane)
        plane.bitwise_and_(mask)
    return out.view(torch.uint8).view(num_blocks, -1)


def _lane(byte: int) -> int:
    """The signed 64-bit number of which each byte is `byte` (below 128)."""
    return int.from_bytes(bytes([byte]) * 8, "little")


def _combine(low: Tensor, high: Tensor, shift: int) -> Tensor:
    """low | high << shift, for fields that do not leave their bytes. Overwrites both."""
    low.view(torch.int64).bitwise_or_(high.view(torch.int64).bitwise_left_shift_(shift))
    return low


def _half(blocks: Tensor, begin: int) -> Tensor:
    """The float16 at byte `begin` of each block, [B, 1]."""
    return blocks[:, begin : begin + 2].contiguous().view(torch.float16)


def _levels(blocks: Tensor, begin: int, steps: Tensor) -> ScaleLevels:
    """Scales whose factor is the float16 at byte `begin`."""
    return ScaleLevels(_half(blocks, begin), steps.to(torch.int8))


def _negated(blocks: Tensor, begin: int, steps: Tensor) -> ScaleLevels:
    """Mins: K formats tell what is taken away."""
    return ScaleLevels(_half(blocks, begin).neg(), steps.to(torch.int8))


# One-level formats: 32 values, float16 scale.


def _q4_0(blocks: Tensor) -> Blocks:
    return _planes(blocks[:, 2:], 16, 4, 2), _half(blocks, 0), None


def _q4_1(blocks: Tensor) -> Blocks:
    return _planes(blocks[:, 4:], 16, 4, 2), _half(blocks, 0), _half(blocks, 2)


def _fifth_bits(packed: Tensor) -> Tensor:
    """uint8 [B, 4] -> uint8 [B, 32]: bit i of the 32 becomes bit 4 of byte i.

    A byte is copied to all eight of a lane, each copy keeps one bit, and adding 127 carries it to the top.
    """
    lanes = packed.to(torch.int64).mul_(_lane(1)).bitwise_and_(_DIAGONAL).add_(_lane(127))
    return lanes.bitwise_right_shift_(3).bitwise_and_(_lane(16)).view(torch.uint8).view(-1, 32)


def _q5_0(blocks: Tensor) -> Blocks:
    values = _combine(_planes(blocks[:, 6:], 16, 4, 2), _fifth_bits(blocks[:, 2:6]), 0)
    return values, _half(blocks, 0), None


def _q5_1(blocks: Tensor) -> Blocks:
    values = _combine(_planes(blocks[:, 8:], 16, 4, 2), _fifth_bits(blocks[:, 4:8]), 0)
    return values, _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Blocks:
    # Two's complement to an offset of 128 is one flipped bit.
    return blocks[:, 2:].contiguous().bitwise_xor_(128), _half(blocks, 0), None


def _iq4_values(nibbles: Tensor) -> Tensor:
    levels = torch.tensor([level + 128 for level in _IQ4_LEVELS], dtype=torch.uint8)
    return levels[nibbles.to(torch.int32)]


def _iq4_nl(blocks: Tensor) -> Blocks:
    return _iq4_values(_planes(blocks[:, 2:], 16, 4, 2)), _half(blocks, 0), None


# Two-level formats: 256 values, float16 scale of small integer scales.


def _q2_k(blocks: Tensor) -> Blocks:
    fields = blocks[:, :16]
    scales, mins = _levels(blocks, 80, fields & 15), _negated(blocks, 82, fields >> 4)
    return _planes(blocks[:, 16:80], 32, 2, 4), scales, mins


def _q3_k(blocks: Tensor) -> Blocks:
    low = _planes(blocks[:, 96:104], 8, 4, 2)  # [B, 16]
    high = torch.cat([(blocks[:, 104:108] >> shift) & 3 for shift in (0, 2, 4, 6)], dim=1)  # [B, 16]
    scales = _levels(blocks, 108, (low | high << 4).to(torch.int8) - 32)
    values = _combine(_planes(blocks[:, 32:96], 32, 2, 4), _planes(blocks[:, :32], 32, 1, 8), 2)
    return values, scales, None


def _k_scales_mins(blocks: Tensor) -> tuple[ScaleLevels, ScaleLevels]:
    """Scales and mins of Q4_K and Q5_K, [B, 8] each: 6-bit fields in bytes 4..16, float16 factors before them.

    Of fields 0..3 the bytes hold all six bits; of fields 4..7 the low four stand in the last bytes and the high
    two on top of the former.
    """
    scale, low, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([scale & 63, rest & 15 | scale >> 2 & 48], dim=1)
    mins = torch.cat([low & 63, rest >> 4 | low >> 2 & 48], dim=1)
    return _levels(blocks, 0, scales), _negated(blocks, 2, mins)


def _q4_k(blocks: Tensor) -> Blocks:
    return _planes(blocks[:, 16:], 32, 4, 2), *_k_scales_mins(blocks)


def _q5_k(blocks: Tensor) -> Blocks:
    values = _combine(_planes(blocks[:, 48:], 32, 4, 2), _planes(blocks[:, 16:48], 32, 1, 8), 4)
    return values, *_k_scales_mins(blocks)


def _q6_k(blocks: Tensor) -> Blocks:
    values = _combine(_planes(blocks[:, :128], 64, 4, 2), _planes(blocks[:, 128:192], 32, 2, 4), 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return values, _levels(blocks, 208, scales), None


def _iq4_xs(blocks: Tensor) -> Blocks:
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
    high = (blocks[:, 2:4].unsqueeze(-1) >> shifts & 3).view(-1, 8)
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], dim=-1).view(-1, 8)
    scales = _levels(blocks, 0, (low | high << 4).to(torch.int8) - 32)
    return _iq4_values(_planes(blocks[:, 8:], 16, 4, 2)), scales, None


@dataclass(frozen=True)
class _Format:
    """How a block format maps to `QuantizedWeight`; the fields are the latter's."""

    bits: int
    group_size: int
    zero: int
    decode: Callable[[Tensor], Blocks]


FORMATS: Final = {
    "Q4_0": _Format(4, 32, 8, _q4_0),
    "Q4_1": _Format(4, 32, 0, _q4_1),
    "Q5_0": _Format(5, 32, 16, _q5_0),
    "Q5_1": _Format(5, 32, 0, _q5_1),
    "Q8_0": _Format(8, 32, 128, _q8_0),
    "Q2_K": _Format(4, 16, 0, _q2_k),
    "Q3_K": _Format(4, 16, 4, _q3_k),
    "Q4_K": _Format(4, 32, 0, _q4_k),
    "Q5_K": _Format(5, 32, 0, _q5_k),
    "Q6_K": _Format(6, 16, 32, _q6_k),
    "IQ4_NL": _Format(8, 32, 128, _iq4_nl),
    "IQ4_XS": _Format(8, 32, 128, _iq4_xs),
}
