"""bitsandbytes: nf4 and fp4 in blocks of the flattened matrix, and LLM.int8.

4 bits   weight uint8 [N K / 2, 1], of two values the first in the high bits
         weight.quant_map float32 [16], weight.absmax float32 [blocks]
         nested: weight.absmax uint8, weight.nested_quant_map float32 [256], weight.nested_absmax float32 [blocks / 256]
         weight.quant_state.bitsandbytes__nf4 (or __fp4): JSON as bytes, with shape, blocksize and nested_offset
         w = quant_map[u] * absmax
8 bits   weight int8 [N, K], SCB float [N]
         w = q * SCB / 127
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import torch
from torch import Tensor

from octavo.quant.methods.parts import BYTES, FLOATS, Parts, Settings
from octavo.quant.packed import QuantizedWeight

_STATE: Final = "weight.quant_state.bitsandbytes__"
_STATES: Final = (f"{_STATE}nf4", f"{_STATE}fp4")
_MAX_BLOCK: Final = 1 << 24
_FLOAT32: Final = (torch.float32,)


class BitsAndBytes:
    name: Final = "bitsandbytes"
    parts: Final = (
        "weight", "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", *_STATES,
        "SCB", "weight_format",
    )  # fmt: skip

    def __init__(self, settings: Settings) -> None:
        settings.flag("load_in_4bit", False)
        settings.flag("load_in_8bit", False)
        settings.refuse_unless("bnb_4bit_quant_type", ("nf4", "fp4"))

    def holds(self, parts: Parts) -> bool:
        return "weight.absmax" in parts or "SCB" in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        if "SCB" in parts:
            n, k = parts.matrix("weight", (torch.int8,)).shape
            return n, k
        part, state = _state(parts)
        shape = state.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
            raise parts.fail(part, f"has the shape {str(shape)[:80]}, not that of a matrix")
        return shape[0], shape[1]

    def bits(self, parts: Parts) -> int:
        return 8 if "SCB" in parts else 4

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        n, k = self.shape(parts)
        if "SCB" in parts:
            scales = parts.shaped("SCB", FLOATS, n).to(torch.float32).view(n, 1) / 127
            values = parts.get("weight", (torch.int8,)).view(torch.uint8) ^ 128
            return QuantizedWeight(values, 8, k, scales, zero=128)
        part, state = _state(parts)
        block = _block(parts, part, state, "blocksize")
        codes = _codes(parts, n * k)
        scales = _absmax(parts, part, state, math.ceil(n * k / block))
        table = parts.shaped("weight.quant_map", _FLOAT32, 16)
        if k % block == 0:
            return QuantizedWeight(codes.view(n, k), 4, block, scales.view(n, -1), table=table)
        # Blocks go over the ends of rows.
        return (table[codes.to(torch.int32)] * scales.repeat_interleave(block)[: n * k]).view(n, k)


def _state(parts: Parts) -> tuple[str, dict[str, Any]]:
    part = next((each for each in _STATES if each in parts), _STATES[0])
    try:
        state = json.loads(bytes(parts.get(part, BYTES).flatten().tolist()))
    except (ValueError, RecursionError):
        raise parts.fail(part, "is not JSON") from None
    if not isinstance(state, dict):
        raise parts.fail(part, "is not a JSON object")
    return part, state


def _block(parts: Parts, part: str, state: dict[str, Any], key: str) -> int:
    """Values that share a scale."""
    block = state.get(key)
    if type(block) is not int or not 1 <= block <= _MAX_BLOCK:
        raise parts.fail(part, f"has the {key} {str(block)[:80]}")
    return block


def _codes(parts: Parts, count: int) -> Tensor:
    """uint8 [count]. Bytes may be stored as a wider type (bnb_4bit_quant_storage)."""
    stored = parts.get("weight", (torch.uint8, torch.int8, *FLOATS)).contiguous().view(-1).view(torch.uint8)
    if len(stored) != math.ceil(count / 2):
        raise parts.fail("weight", f"has {len(stored)} bytes for {count} values of 4 bits")
    return torch.stack((stored >> 4, stored & 15), dim=1).view(-1)[:count]


def _absmax(parts: Parts, part: str, state: dict[str, Any], count: int) -> Tensor:
    """float32 [count]."""
    if parts.dtype("weight.absmax") != torch.uint8:
        return parts.shaped("weight.absmax", _FLOAT32, count)
    block, offset = _block(parts, part, state, "nested_blocksize"), state.get("nested_offset")
    if not isinstance(offset, int | float):
        raise parts.fail(part, "has no nested_offset for an absmax of 8 bits")
    values = parts.shaped("weight.nested_quant_map", _FLOAT32, 256)[
        parts.shaped("weight.absmax", BYTES, count).to(torch.int32)
    ]
    nested = parts.shaped("weight.nested_absmax", _FLOAT32, math.ceil(count / block))
    return values * nested.repeat_interleave(block)[:count] + offset
