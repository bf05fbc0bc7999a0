"""torchao, as it flattens its tensors into safetensors: of MODULE.weight the tensors MODULE._weight_qdata,
MODULE._weight_scale, ..., and in the file's metadata under its name the kind, as JSON.

Int8Tensor, IntxUnpackedToInt8Tensor   qdata int8 [N, K], scale [N, G] or [1, 1], zero_point alike
                                       w = scale * (q - zero)
Int4Tensor                qdata int8 [N, K / 2], the first of two in the low bits, in two's complement;
                          scale [G, N], zero_point float [G, N];                       w = scale * q + zero_point
Int4TilePackedTo4dTensor  qdata int32 [N / 8, K / 128, 32, 4], tiles of a GPU's kernel, K padded to 1024 and N to 8;
                          scale_and_zero [G, N, 2];                                    w = scale * (u - 8) + zero
Float8Tensor              qdata float8 [N, K], scale float [N, 1], [1, 1] or of blocks;              w = scale * q
NVFP4Tensor               qdata uint8 [N, K / 2], scale float8 [N, K / 16], per_tensor_scale float
                                                                                       w = fp4 * (scale * scale)
MXTensor                  qdata float8, or uint8 of fp4; scale e8m0 [N, K / 32]                      w = scale * q

Scales of the last two may stand in blocks of 128 x 4, as a GPU's kernel wants them (`is_swizzled_scales`).
"""

from __future__ import annotations

import json
from typing import Any, Final

import torch
from torch import Tensor

from octavo.quant import mxfp4
from octavo.quant.methods.float8 import FLOAT8S
from octavo.quant.methods.fp4 import FP4_VALUES, POWERS, mxfp4_weight
from octavo.quant.methods.parts import BYTES, FLOATS, WORDS, Parts, Settings, grouped_scales, held_bits, unpack_bits
from octavo.quant.packed import QuantizedWeight, exact_scales

_QDATA: Final = "_weight_qdata"
_SCALE: Final = "_weight_scale"
_ZERO: Final = "_weight_zero_point"
_TILED: Final = "_weight_scale_and_zero"
_WHOLE: Final = "_weight_per_tensor_scale"
_PRE_SCALE: Final = "_weight_act_pre_scale"
_INT8: Final = (torch.int8,)
_HALVES: Final = (torch.int8, torch.uint8)
_NVFP4_GROUP: Final = 16
#: Columns of a lane's eight values of 4 bits, from the lowest: those of two tiles of 16 columns.
_LANE_COLUMNS: Final = (0, 8, 16, 24, 1, 9, 17, 25)


class TorchAO:
    name: Final = "torchao"
    parts: Final = (
        _QDATA, _SCALE, _ZERO, _TILED, _WHOLE, _PRE_SCALE, "_weight_act_quant_scale", "_weight_act_quant_zero_point",
        "_weight_act_per_tensor_scale",
    )  # fmt: skip

    def __init__(self, settings: Settings) -> None:
        self._metadata = settings.metadata
        self._kinds = {
            "Int8Tensor": _int8, "IntxUnpackedToInt8Tensor": _int8, "Int4Tensor": _int4,
            "Int4TilePackedTo4dTensor": _tiled, "Float8Tensor": _float8, "NVFP4Tensor": _nvfp4, "MXTensor": _mx,
        }  # fmt: skip

    def holds(self, parts: Parts) -> bool:
        return _QDATA in parts

    def shape(self, parts: Parts) -> tuple[int, int]:
        kind, about = self._about(parts)
        if kind == "Int4TilePackedTo4dTensor":
            return _told_shape(parts, about)
        n, k = parts.matrix(_QDATA, (*_HALVES, *FLOAT8S)).shape
        return n, 2 * k if _is_halves(parts, kind) else k

    def bits(self, parts: Parts) -> int:
        kind, about = self._about(parts)
        if kind in ("Int4Tensor", "Int4TilePackedTo4dTensor", "NVFP4Tensor"):
            return 4
        if kind == "MXTensor" and _is_halves(parts, kind):
            return mxfp4.BITS
        return held_bits(_integer_bits(parts, about)) if kind == "IntxUnpackedToInt8Tensor" else 8

    def weight(self, parts: Parts) -> QuantizedWeight:
        kind, about = self._about(parts)
        if _PRE_SCALE in parts:
            raise parts.fail(_PRE_SCALE, "is not supported: activations would have to be multiplied by it")
        n, k = self.shape(parts)
        return self._kinds[kind](parts, about, n, k)

    def _about(self, parts: Parts) -> tuple[str, dict[str, Any]]:
        """What the metadata say: the kind of tensor, and its attributes."""
        try:
            found = json.loads(self._metadata.get(f"{parts.module}.weight", ""))
            kind, about = found["_type"], found.get("_data")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise parts.fail(_QDATA, "is of torchao, and the file's metadata do not say of which kind") from None
        if not isinstance(kind, str) or kind not in self._kinds:
            raise parts.fail(_QDATA, f"is of torchao's {str(kind)[:80]!r}, which is not supported")
        return kind, about if isinstance(about, dict) else {}


def _is_halves(parts: Parts, kind: str) -> bool:
    """Whether a byte holds two values."""
    return kind in ("Int4Tensor", "NVFP4Tensor") or (kind == "MXTensor" and parts.dtype(_QDATA) not in FLOAT8S)


def _told_shape(parts: Parts, about: dict[str, Any]) -> tuple[int, int]:
    shape = about.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise parts.fail(_QDATA, f"has the shape {str(shape)[:80]} in the metadata, not that of a matrix")
    return shape[0], shape[1]


def _integer_bits(parts: Parts, about: dict[str, Any]) -> int:
    target = about.get("target_dtype")
    name = target.get("_data") if isinstance(target, dict) else None
    if name not in (names := [f"int{bits}" for bits in range(1, 9)]):
        raise parts.fail(_QDATA, f"has the target_dtype {str(target)[:80]}, not an integer")
    return names.index(name) + 1


def _groups(parts: Parts, part: str, scales: Tensor, n: int, k: int) -> Tensor:
    """[N, G] of a scale a matrix, a row, a group or a block."""
    if scales.dim() == 2 and n % len(scales) == 0 and k % scales.shape[1] == 0:
        return grouped_scales(parts, part, scales, n, k, (n // len(scales), k // scales.shape[1]))
    return grouped_scales(parts, part, scales, n, k, None)


def _int8(parts: Parts, about: dict[str, Any], n: int, k: int) -> QuantizedWeight:
    bits = _integer_bits(parts, about) if "target_dtype" in about else 8
    low = 1 << bits - 1
    codes = parts.get(_QDATA, _INT8).to(torch.int16) + low
    if int(codes.min()) < 0 or int(codes.max()) >= 2 * low:
        raise parts.fail(_QDATA, f"has values beyond {bits} bits")
    codes, held = codes.to(torch.uint8), held_bits(bits)
    scales = _groups(parts, _SCALE, parts.get(_SCALE, FLOATS), n, k)
    group = k // scales.shape[1]
    if _ZERO not in parts:
        return QuantizedWeight(codes, held, group, exact_scales(scales), zero=low)
    stored = parts.get(_ZERO, (*_INT8, torch.int32, torch.int64, *FLOATS))
    zeros = _groups(parts, _ZERO, stored, n, k)
    if zeros.shape[1] not in (1, scales.shape[1]):
        raise parts.fail(_ZERO, f"has the shape {list(stored.shape)}, and there are {scales.shape[1]} scales a row")
    if not (zeros != 0).any():
        return QuantizedWeight(codes, held, group, exact_scales(scales), zero=low)
    wide = scales.to(torch.float32).contiguous()
    return QuantizedWeight(codes, held, group, wide, -(wide * (zeros.to(torch.float32) + low)))


def _int4(parts: Parts, about: dict[str, Any], n: int, k: int) -> QuantizedWeight:
    # Two's complement to an offset of 8 is one flipped bit.
    codes = unpack_bits(parts.get(_QDATA, _HALVES).view(torch.uint8), 4) ^ 8
    scales = parts.matrix(_SCALE, FLOATS)
    zeros = parts.shaped(_ZERO, FLOATS, *scales.shape)
    return _around_8(parts, _SCALE, codes, scales.t(), zeros.t())


def _tiled(parts: Parts, about: dict[str, Any], n: int, k: int) -> QuantizedWeight:
    words = parts.get(_QDATA, WORDS)
    if words.dim() != 4 or words.shape[2] != 32 or 8 * len(words) < n or 32 * words.shape[1] * words.shape[3] < k:
        raise parts.fail(_QDATA, f"has the shape {list(words.shape)}, which does not fit a matrix {[n, k]}")
    tiles, runs, _, pairs = words.shape
    values = unpack_bits(words.reshape(-1, 1), 4).view(tiles, runs, 8, 4, pairs, 8)  # lane = 4 * row + column / 2
    codes = torch.empty(tiles, 8, runs, pairs, 32, dtype=torch.uint8)
    for lane in range(4):
        columns = [2 * lane + column for column in _LANE_COLUMNS]
        codes[..., columns] = values[:, :, :, lane].permute(0, 2, 1, 3, 4)
    both = parts.get(_TILED, FLOATS)
    padded = 8 * tiles, 32 * runs * pairs
    if both.dim() != 3 or both.shape[1:] != (padded[0], 2) or not len(both) or padded[1] % len(both):
        raise parts.fail(_TILED, f"has the shape {list(both.shape)}, which does not fit {list(words.shape)}")
    group = padded[1] // len(both)
    if k % group:
        raise parts.fail(_TILED, f"has groups of {group}, which do not fit {k} columns")
    scales, zeros = both[: k // group, :n].permute(2, 1, 0)
    return _around_8(parts, _TILED, codes.view(padded)[:n, :k].contiguous(), scales, zeros)


def _around_8(parts: Parts, part: str, codes: Tensor, scales: Tensor, zeros: Tensor) -> QuantizedWeight:
    """scale * (u - 8) + zero, scales [N, G]."""
    n, k = codes.shape
    if len(scales) != n or k % scales.shape[1]:
        raise parts.fail(part, f"has the shape {list(scales.t().shape)}, which does not fit a matrix {[n, k]}")
    group = k // scales.shape[1]
    if not (zeros != 0).any():
        return QuantizedWeight(codes, 4, group, exact_scales(scales), zero=8)
    wide = scales.to(torch.float32).contiguous()
    mins = (zeros.to(torch.float64) - 8 * wide.to(torch.float64)).to(torch.float32)
    return QuantizedWeight(codes, 4, group, wide, mins.contiguous())


def _float8(parts: Parts, about: dict[str, Any], n: int, k: int) -> QuantizedWeight:
    return _of_bytes(parts, _groups(parts, _SCALE, parts.get(_SCALE, FLOATS), n, k))


def _nvfp4(parts: Parts, about: dict[str, Any], n: int, k: int) -> QuantizedWeight:
    if k % _NVFP4_GROUP:
        raise parts.fail(_QDATA, f"has rows of {k} values, which are no groups of {_NVFP4_GROUP}")
    scales = _in_rows(parts, about, (torch.float8_e4m3fn,), n, k // _NVFP4_GROUP).to(torch.float32)
    if _WHOLE in parts:
        whole = parts.get(_WHOLE, (torch.float32,))
        if whole.numel() != 1:
            raise parts.fail(_WHOLE, f"has the shape {list(whole.shape)}, not that of one number")
        scales = whole.reshape(1, 1) * scales
    codes = unpack_bits(parts.get(_QDATA, BYTES), 4)
    return QuantizedWeight(codes, 4, _NVFP4_GROUP, scales.contiguous(), table=FP4_VALUES)


def _mx(parts: Parts, about: dict[str, Any], n: int, k: int) -> QuantizedWeight:
    if about.get("block_size") != mxfp4.GROUP or k % mxfp4.GROUP:
        raise parts.fail(_QDATA, f"of rows of {k} has the block_size {str(about.get('block_size'))[:80]}")
    scales = _in_rows(parts, about, POWERS, n, k // mxfp4.GROUP)
    if parts.dtype(_QDATA) in FLOAT8S:
        return _of_bytes(parts, scales.view(torch.float8_e8m0fnu))
    return mxfp4_weight(parts, _QDATA, scales)


def _of_bytes(parts: Parts, scales: Tensor) -> QuantizedWeight:
    data = parts.matrix(_QDATA, FLOAT8S)
    table = torch.arange(256, dtype=torch.uint8).view(data.dtype).to(torch.float32)
    wide = scales.to(torch.float32).contiguous()
    return QuantizedWeight(data.view(torch.uint8), 8, data.shape[1] // scales.shape[1], wide, table=table)


def _in_rows(parts: Parts, about: dict[str, Any], dtypes: tuple[torch.dtype, ...], n: int, groups: int) -> Tensor:
    """Scales [N, G] that may stand in blocks of 128 x 4, padded: of each its rows i, i + 32, i + 64, i + 96 are one."""
    if not about.get("is_swizzled_scales"):
        return parts.shaped(_SCALE, dtypes, n, groups)
    high, wide = -(-n // 128), -(-groups // 4)
    stored = parts.get(_SCALE, dtypes)
    if stored.numel() != 512 * high * wide:
        raise parts.fail(_SCALE, f"has {stored.numel()} values for blocks of a matrix {[n, groups]}")
    blocks = stored.contiguous().view(torch.uint8).view(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return blocks.reshape(128 * high, 4 * wide)[:n, :groups].contiguous().view(stored.dtype)
