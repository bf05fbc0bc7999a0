"""ModelOpt, as NVIDIA's tool exports a model: `quant_algo` of the configuration, or of hf_quant_config.json.

FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO   weight float8 [N, K], weight_scale float, of the matrix, rows or blocks
MXFP8          the same, weight_scale uint8 [N, K / 32], powers of two
NVFP4, W4A16_NVFP4, W4A8_NVFP4_FP8          weight uint8 [N, K / 2] of fp4, weight_scale float8 [N, K / 16],
               weight_scale_2 float32 [1];                                  w = fp4 * (weight_scale * weight_scale_2)
MXFP4          weight uint8 [N, K / 2], weight_scale uint8 [N, K / 32]
W8A16, W8A8_SQ_PER_CHANNEL                  weight int8 [N, K], weight_scale float [N]
W4A16_AWQ, W4A8_AWQ    weight uint8 [N / 2, K], of two rows the first in the low bits; weight_scale float [N, K / g]
any of them    pre_quant_scale float [K], by which activations are multiplied: the columns of the weight are, here

Modules of MIXED_PRECISION are told apart by their tensors, as those that are not quantized are.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from octavo.quant import mxfp4
from octavo.quant.methods.float8 import FLOAT8S, SCALES, float8_weight, is_float8
from octavo.quant.methods.fp4 import FP4_VALUES, POWERS, is_mx, mxfp4_weight
from octavo.quant.methods.parts import BYTES, FLOATS, Parts, Settings, affine, grouped_scales, unpack_bits
from octavo.quant.packed import QuantizedWeight

_ALGORITHMS: Final = (
    "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "FP8_PB_REAL", "MXFP8", "NVFP4", "W4A16_NVFP4", "NVFP4_AWQ",
    "W4A8_NVFP4_FP8", "MXFP4", "W4A8_MXFP4_FP8", "W8A16", "W8A8_SQ_PER_CHANNEL", "W4A16_AWQ", "W4A8_AWQ",
    "MIXED_PRECISION",
)  # fmt: skip
_BLOCK: Final = (128, 128)
_INT8: Final = (torch.int8,)


class ModelOpt:
    name: Final = "modelopt"
    parts: Final = ("weight", "weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")

    def __init__(self, settings: Settings) -> None:
        inner = settings.section("quantization")
        for section in (settings, inner):
            section.refuse_unless("quant_algo", _ALGORITHMS)

    def holds(self, parts: Parts) -> bool:
        return "weight_scale" in parts and (is_float8(parts) or parts.dtype("weight") in (torch.uint8, torch.int8))

    def shape(self, parts: Parts) -> tuple[int, int]:
        n, k = parts.matrix("weight", (*BYTES, *_INT8, *FLOAT8S)).shape
        if parts.dtype("weight") != torch.uint8:
            return n, k
        return (n, 2 * k) if _is_fp4(parts) else (2 * n, k)

    def bits(self, parts: Parts) -> int:
        if "pre_quant_scale" in parts:
            return 32
        if parts.dtype("weight") != torch.uint8:
            return 8
        return mxfp4.BITS if is_mx(parts) else 4

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        n, k = self.shape(parts)
        weight = self._stored(parts, n, k)
        if "pre_quant_scale" not in parts:
            return weight
        factors = parts.shaped("pre_quant_scale", FLOATS, k).to(torch.float32)
        return weight if bool((factors == 1).all()) else weight.dequantize().mul_(factors)

    def _stored(self, parts: Parts, n: int, k: int) -> QuantizedWeight:
        if is_float8(parts):
            scale = parts.get("weight_scale", SCALES)
            if scale.dim() == 4:  # [N / 128, 1, K / 128, 1]
                parts = Parts(parts.module, {"weight": parts.get("weight", FLOAT8S), "weight_scale": scale[:, 0, :, 0]})
            return float8_weight(parts, "weight_scale", _BLOCK)
        if _is_fp4(parts):
            return _fp4(parts, n, k)
        scales = parts.get("weight_scale", FLOATS)
        scales = grouped_scales(parts, "weight_scale", scales, n, k, None)
        if parts.dtype("weight") == torch.int8:  # two's complement to an offset of 128 is one flipped bit
            return affine(parts.get("weight", _INT8).view(torch.uint8) ^ 128, 8, scales, 128)
        packed = parts.get("weight", BYTES)
        codes = torch.stack((packed & 15, packed >> 4), dim=1).view(n, k) ^ 8
        return affine(codes, 4, scales, 8)


def _is_fp4(parts: Parts) -> bool:
    """Bytes of two values along K, with scales of groups of 16 or 32; those of two rows have float scales."""
    return parts.dtype("weight") == torch.uint8 and parts.dtype("weight_scale") not in FLOATS


def _fp4(parts: Parts, n: int, k: int) -> QuantizedWeight:
    if is_mx(parts):
        return mxfp4_weight(parts, "weight", parts.get("weight_scale", POWERS))
    scales = parts.get("weight_scale", (torch.float8_e4m3fn,)).to(torch.float32)
    whole = parts.get("weight_scale_2", (torch.float32,))
    if math.prod(whole.shape) != 1:
        raise parts.fail("weight_scale_2", f"has the shape {list(whole.shape)}, not that of one number")
    scales = grouped_scales(parts, "weight_scale", scales, n, k, None) * whole.reshape(1, 1)
    return QuantizedWeight(
        unpack_bits(parts.get("weight", BYTES), 4), 4, k // scales.shape[1], scales.contiguous(), table=FP4_VALUES
    )
