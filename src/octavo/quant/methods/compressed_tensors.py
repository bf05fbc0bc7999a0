"""compressed-tensors: integers of 2 to 8 bits, packed or one a byte, float8, and fp4.

    pack-quantized   weight_packed int32 [N, K * bits / 32] along K: q + 2^(bits - 1); weight_shape [2]
                     weight_zero_point int32 [N * bits / 32, G] along N, stored alike; weight_g_idx int32 [K]
    int-quantized    weight int8 [N, K], weight_zero_point int8
    float-quantized  weight float8 [N, K]
    nvfp4-pack-quantized
                     weight_packed uint8 [N, K / 2] of fp4, the first in the low bits; weight_scale float8 [N, K / 16],
                     weight_global_scale float32 [1], by which the scales are divided
    mxfp4-pack-quantized, mxfp8-quantized
                     as nvfp4 and float8; weight_scale uint8 [N, K / 32], powers of two: 2^(byte - 127)
    marlin-24        see `sparse_marlin`
    the others       weight_scale float [1], [N, 1], [N, G], or of blocks; w = scale * (q - zero)

Which modules are quantized, and in which groups, the tensors say themselves, as `ignore` and `targets` do.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from octavo.quant import mxfp4
from octavo.quant.methods.float8 import float8_weight, is_float8, read_block
from octavo.quant.methods.fp4 import FP4_VALUES, POWERS, is_mx, mxfp4_weight
from octavo.quant.methods.parts import (
    BYTES,
    FLOATS,
    WORDS,
    Parts,
    Settings,
    affine,
    column_order,
    grouped_scales,
    held_bits,
    unpack_bits,
)
from octavo.quant.methods.sparse_marlin import SparseMarlin
from octavo.quant.packed import QuantizedWeight

_INTEGERS: Final = (torch.int32, torch.int64)
_FORMATS: Final = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized", "dense", "mixed-precision", "marlin-24",
)  # fmt: skip
_SPARSE: Final = SparseMarlin("compressed-tensors", "weight_packed", "meta", "scale_packed")
_INT8: Final = (torch.int8,)


class CompressedTensors:
    name: Final = "compressed-tensors"
    parts: Final = (
        "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx",
        "weight_global_scale", "input_global_scale", "scale_packed", "meta",
        "input_scale", "input_zero_point", "output_scale", "output_zero_point",
    )  # fmt: skip

    def __init__(self, settings: Settings) -> None:
        settings.refuse_unless("format", _FORMATS)
        settings.section("sparsity_config").refuse_unless("format", ("dense",), "is not supported: sparse weights")
        if settings.values.get("transform_config"):
            raise settings.fail("transform_config", "is not supported: activations would have to be transformed")
        self._bits: set[int] = set()
        self._block: tuple[int, int] | None = None
        groups = settings.section("config_groups")
        for name in groups.values:
            group = groups.section(name)
            group.refuse_unless("format", _FORMATS)
            self._read_weights(group.section("weights"))

    def _read_weights(self, weights: Settings) -> None:
        weights.refuse_unless("type", ("int", "float"))
        self._bits.add(weights.integer("num_bits", 8, 2, 8))
        if weights.values.get("type") == "float":
            weights.refuse_unless("num_bits", (4, 8))
        self._block = read_block(weights, "block_structure") or self._block

    def holds(self, parts: Parts) -> bool:
        return "weight_packed" in parts or is_float8(parts) or _is_int8(parts)

    def shape(self, parts: Parts) -> tuple[int, int]:
        if _SPARSE.holds(parts):
            return _SPARSE.shape(parts)
        if _is_fp4(parts):
            n, half = parts.matrix("weight_packed", BYTES).shape
            return n, 2 * half
        if "weight_packed" not in parts:
            n, k = parts.matrix("weight", (*_INT8, torch.float8_e4m3fn, torch.float8_e5m2)).shape
            return n, k
        n, k = (int(size) for size in parts.shaped("weight_shape", _INTEGERS, 2))
        if n != len(parts.matrix("weight_packed", WORDS)) or not 0 < k < 1 << 24:
            raise parts.fail("weight_shape", f"says {[n, k]}, which does not fit weight_packed")
        return n, k

    def bits(self, parts: Parts) -> int:
        if _SPARSE.holds(parts):
            return _SPARSE.bits(parts)
        if _is_fp4(parts):
            return mxfp4.BITS if is_mx(parts) else 4
        return held_bits(self._stored_bits(parts)) if "weight_packed" in parts else 8

    def weight(self, parts: Parts) -> Tensor | QuantizedWeight:
        if _SPARSE.holds(parts):
            return _SPARSE.weight(parts)
        if is_float8(parts):
            return float8_weight(parts, "weight_scale", self._block)
        n, k = self.shape(parts)
        if _is_fp4(parts):
            return self._fp4(parts, n, k)
        scales = grouped_scales(parts, "weight_scale", parts.get("weight_scale", FLOATS), n, k, self._block)
        if "weight_packed" in parts:
            return self._unpacked(parts, n, k, scales)
        # Two's complement to an offset of 128 is one flipped bit.
        values = parts.get("weight", _INT8).view(torch.uint8) ^ 128
        zeros = self._signed_zeros(parts, n, k, 128)
        return affine(values, 8, scales, zeros)

    def _fp4(self, parts: Parts, n: int, k: int) -> QuantizedWeight:
        if is_mx(parts):
            return mxfp4_weight(parts, "weight_packed", parts.get("weight_scale", POWERS))
        scales = parts.get("weight_scale", (torch.float8_e4m3fn,)).to(torch.float32)
        scales = grouped_scales(parts, "weight_scale", scales, n, k, None)
        scales = scales / parts.shaped("weight_global_scale", (torch.float32,), 1)
        return QuantizedWeight(
            unpack_bits(parts.get("weight_packed", BYTES), 4),
            4,
            k // scales.shape[1],
            scales.contiguous(),
            table=FP4_VALUES,
        )

    def _unpacked(self, parts: Parts, n: int, k: int, scales: Tensor) -> Tensor | QuantizedWeight:
        bits = self._stored_bits(parts)
        words = parts.get("weight_packed", WORDS)
        if words.shape[1] == math.ceil(k * bits / 32):
            values = unpack_bits(words, bits)[:, :k]
        else:  # releases that left the rest of each word free
            per_word = 32 // bits
            shifts = torch.arange(0, per_word * bits, bits, dtype=torch.int32)
            values = (words.unsqueeze(-1) >> shifts & (1 << bits) - 1).to(torch.uint8).view(n, -1)[:, :k]
        num_groups = scales.shape[1]
        zeros: Tensor | int = 1 << bits - 1
        if "weight_zero_point" in parts:
            if parts.get("weight_zero_point", (*WORDS, *_INT8)).dtype == torch.int8:
                zeros = self._signed_zeros(parts, n, k, 1 << bits - 1)
            else:
                packed = parts.matrix("weight_zero_point", WORDS)
                zeros = unpack_bits(packed.t(), bits)[:, :n].t()
                if tuple(zeros.shape) != (n, num_groups):
                    raise parts.fail("weight_zero_point", f"has the shape {list(packed.shape)}, unlike the scales")
        if "weight_g_idx" not in parts:
            return affine(values, bits, scales, zeros)
        groups = parts.shaped("weight_g_idx", _INTEGERS, k)
        if (groups == -1).all():
            return affine(values, bits, scales, zeros)
        is_regular, order = column_order(groups, num_groups)
        if not is_regular:
            raise parts.fail("weight_g_idx", f"does not make {num_groups} groups of one size")
        return affine(values if order is None else values[:, order], bits, scales, zeros, order)

    def _signed_zeros(self, parts: Parts, n: int, k: int, offset: int) -> Tensor | int:
        if "weight_zero_point" not in parts:
            return offset
        zeros = parts.get("weight_zero_point", _INT8)
        zeros = grouped_scales(parts, "weight_zero_point", zeros, n, k, self._block).to(torch.int32) + offset
        if int(zeros.min()) < 0 or int(zeros.max()) >= 2 * offset:
            raise parts.fail("weight_zero_point", f"has values beyond those of the weight, {-offset} to {offset - 1}")
        return zeros.to(torch.uint8)

    def _stored_bits(self, parts: Parts) -> int:
        """Those of the configuration's groups that fit the tensor."""
        k = self.shape(parts)[1]
        width = parts.matrix("weight_packed", WORDS).shape[1]
        fitting = [bits for bits in self._bits if width in (math.ceil(k * bits / 32), math.ceil(k / (32 // bits)))]
        if len(fitting) != 1:
            raise parts.fail("weight_packed", f"has {width} words a row, which does not fit {sorted(self._bits)} bits")
        return fitting[0]


def _is_fp4(parts: Parts) -> bool:
    return parts.dtype("weight_packed") == torch.uint8


def _is_int8(parts: Parts) -> bool:
    return "weight" in parts and "weight_scale" in parts and parts.dtype("weight") == torch.int8
