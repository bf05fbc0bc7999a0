"""Quantizes float matrices while they load, a value by rounding to the nearest: no data is needed, and none is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from octavo.base.config.engine import LoadQuantization
from octavo.quant.packed import E4M3_VALUES, QuantizedWeight, exact_scales

_GROUP: Final = 32
_NF4_GROUP: Final = 64
#: Values that are quantized at a time, which bounds the memory of what is between.
_PIECE: Final = 16 << 20
_FLOAT8_MAX: Final = 448.0
#: Below it a float16 loses digits.
_HALF_MIN: Final = 2.0**-14
#: Normal float 4: quantiles of the normal distribution, so that each of its 16 values is met about as often.
NF4_VALUES: Final = torch.tensor(
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    )
)  # fmt: skip


def quantize(weight: Tensor, kind: LoadQuantization) -> Tensor | QuantizedWeight:
    """A float matrix [N, K] in its new form; the matrix itself where K does not divide into groups.

    int8: 8 bits, a scale in each 32. int4: 4 bits, a scale and a minimum in each 32. fp8, deepspeedfp: float8 e4m3, a
    scale a row. bitsandbytes: nf4, a scale in each 64. experts_int8: 8 bits, a scale a row.
    """
    n, k = weight.shape
    group, of_rows = {
        "int8": (_GROUP, _int8), "int4": (_GROUP, _int4), "bitsandbytes": (_NF4_GROUP, _nf4), "fp8": (k, _float8),
        "deepspeedfp": (k, _float8), "experts_int8": (k, _int8),
    }[kind]  # fmt: skip
    group = math.gcd(k, group)
    if group < 16 or group % 16:
        return weight
    step = max(1, _PIECE // k)
    pieces = [of_rows(weight[at : at + step].to(torch.float32).view(-1, k // group, group)) for at in range(0, n, step)]
    values, scales, mins = (torch.cat(parts) if parts[0] is not None else None for parts in zip(*pieces, strict=True))
    assert values is not None and scales is not None
    values = values.view(n, k)
    if of_rows is _int8:
        return QuantizedWeight(values, 8, group, exact_scales(scales), zero=128)
    if mins is not None:
        halves = exact_scales(scales), exact_scales(mins)
        if halves[0].dtype != halves[1].dtype:
            halves = scales, mins
        return QuantizedWeight(values, 4, group, *halves)
    table = E4M3_VALUES if of_rows is _float8 else NF4_VALUES
    return QuantizedWeight(values, 8 if of_rows is _float8 else 4, group, scales, table=table)


_Pieces = tuple[Tensor, Tensor, Tensor | None]
_OfRows = Callable[[Tensor], _Pieces]


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales > 0, 1 / scales, torch.zeros_like(scales)).unsqueeze(-1)


def _halved(values: Tensor) -> Tensor:
    """The values as they are stored, so that codes are chosen for what they will be multiplied by."""
    half = values.to(torch.float16).to(torch.float32)
    return torch.where((values.abs() >= _HALF_MIN) & half.isfinite(), half, values)


def _int8(x: Tensor) -> _Pieces:
    scales = _halved(x.abs().amax(-1) / 127)
    codes = (x * _inverse(scales)).round_().clamp_(-127, 127)
    return (codes + 128).to(torch.uint8), scales, None


def _int4(x: Tensor) -> _Pieces:
    low, high = x.amin(-1).clamp_(max=0), x.amax(-1).clamp_(min=0)
    scales, mins = _halved((high - low) / 15), _halved(low)
    codes = ((x - mins.unsqueeze(-1)) * _inverse(scales)).round_().clamp_(0, 15)
    return codes.to(torch.uint8), scales, mins


def _float8(x: Tensor) -> _Pieces:
    scales = x.abs().amax(-1) / _FLOAT8_MAX
    codes = (x * _inverse(scales)).clamp_(-_FLOAT8_MAX, _FLOAT8_MAX)
    return codes.to(torch.float8_e4m3fn).view(torch.uint8), scales, None


def _nf4(x: Tensor) -> _Pieces:
    scales = x.abs().amax(-1)
    edges = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2
    return torch.bucketize(x * _inverse(scales), edges).to(torch.uint8), scales, None
