"""Matrices quantized while they load, to float8 (e4m3) or int8 with a scale for each row, and x likewise in each call.

Up to 16 rows go to the kernel that reads fastest, more of int8 to our tiles, whose sums are exact integers. More of
float8 go to torch's scaled product where it can take them, and to our tiles where it cannot, or where a row's bits must
not depend on the others. All accumulate float8 products as the tensor cores do by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from octavo.base.errors import DeviceError
from octavo.ops.triton.elementwise import quantize_rows
from octavo.ops.triton.linear_chip import chip
from octavo.ops.triton.linear_dense import FEW_ROWS, Bias, few_rows
from octavo.ops.triton.linear_tiles import multiply_tiles

#: --quantization -> the type, and its largest value.
TYPES: Final = {"fp8": (torch.float8_e4m3fn, 448.0), "int8": (torch.int8, 127.0)}
#: Rows of a weight that are quantized at a time, so that their float32 copy stays small.
_ROWS: Final = 4096


def check_supported(quantization: str, device: torch.device) -> None:
    """Raises DeviceError where the device's tensor cores do not know the type."""
    if quantization == "fp8" and device.type == "cuda" and chip(device).capability < (8, 9):
        major, minor = chip(device).capability
        raise DeviceError(
            f"--quantization fp8 needs a GPU of compute capability 8.9 or more; this one has {major}.{minor}. "
            "--quantization int8 runs on it."
        )


def has_layout(n: int, k: int) -> bool:
    """Whether a matrix can be quantized: rows and columns in multiples of 16."""
    return n % 16 == 0 and k % 16 == 0


@dataclass(frozen=True, eq=False)
class QuantizedLinear:
    """A [N, K] matrix of float8 or int8."""

    weight: Tensor
    scale: Tensor  # float32 [N]: what the largest magnitude of a row is divided by
    bias: Bias | None
    is_invariant: bool

    @property
    def N(self) -> int:
        return self.weight.shape[0]

    @property
    def K(self) -> int:
        return self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + self.scale.nbytes

    @property
    def kind(self) -> str:
        return "w8a8 int8" if self.weight.dtype == torch.int8 else "w8a8 fp8"

    def multiply(self, out: Tensor, x: Tensor) -> None:
        x_q = torch.empty(x.shape, dtype=self.weight.dtype, device=x.device)
        x_scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
        quantize_rows(x_q, x_scale, x)
        self.multiply_quantized(out, x_q, x_scale)

    def multiply_quantized(self, out: Tensor, x_q: Tensor, x_scale: Tensor) -> None:
        """x_q [M, K] of the weight's type, x_scale float32 [M, 1]."""
        num_rows, is_int = len(x_q), self.weight.dtype == torch.int8
        bias = None if self.bias is None else self.bias.exact
        if num_rows <= FEW_ROWS and (is_int or not self.is_invariant):
            few_rows(out, x_q, self.weight, bias, (x_scale, self.scale))
        elif not is_int and not self.is_invariant and out.dtype == torch.bfloat16 and out.is_contiguous():
            _scaled_product(out, x_q, x_scale, self)
        else:
            multiply_tiles(out, x_q, self.weight, bias, (x_scale, self.scale))


def _scaled_product(out: Tensor, x_q: Tensor, x_scale: Tensor, w: QuantizedLinear) -> None:
    """torch's, which writes contiguous bfloat16 alone; on a CPU the same product in float32."""
    if x_q.is_cuda:
        torch._scaled_mm(
            x_q, w.weight.t(), x_scale, w.scale.unsqueeze(0), None if w.bias is None else w.bias.rounded,
            out_dtype=out.dtype, use_fast_accum=True, out=out,
        )  # fmt: skip
        return
    product = (x_q.to(torch.float32) @ w.weight.to(torch.float32).t()) * x_scale * w.scale
    out.copy_(product if w.bias is None else product + w.bias.exact)


def pack_quantized(
    weights: Sequence[Tensor],
    quantization: str,
    bias: Bias | None,
    to_device: Callable[[Tensor], Tensor],
    is_invariant: bool,
) -> QuantizedLinear:
    """Quantize [N_i, K] weights of any float type, stacked along N."""
    dtype, largest = TYPES[quantization]
    total, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
    packed: Tensor | None = None
    scale: Tensor | None = None
    start = 0
    for weight in weights:
        there = to_device(weight)
        if packed is None or scale is None:
            packed = torch.empty(total, columns, dtype=dtype, device=there.device)
            scale = torch.empty(total, dtype=torch.float32, device=there.device)
        for first in range(0, len(there), _ROWS):
            rows = there[first : first + _ROWS].to(torch.float32)
            end = start + len(rows)
            scale[start:end] = rows.abs().amax(1).div_(largest).clamp_(min=torch.finfo(torch.float32).tiny)
            scaled = (rows / scale[start:end, None]).clamp_(-largest, largest)
            packed[start:end] = (scaled.round_() if dtype == torch.int8 else scaled).to(dtype)
            start = end
    assert packed is not None and scale is not None
    return QuantizedLinear(packed, scale, bias, is_invariant)
