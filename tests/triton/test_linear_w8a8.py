"""Weights and activations of 8 bits in Triton's interpreter, against what they were quantized to, and from."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from octavo.base.errors import DeviceError
from octavo.ops.triton import linear, linear_w8a8
from octavo.ops.triton.elementwise import quantize_rows
from octavo.ops.triton.linear_chip import Chip
from support.tensors import randn

CPU = torch.device("cpu")
Name = Literal["fp8", "int8"]
NAMES: list[Name] = ["fp8", "int8"]
#: Of a product of random values that are rounded to the type on both sides, as a share of the result's size.
ERRORS = {"fp8": 0.05, "int8": 0.02}


def quantized(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x_q, x_scale = torch.empty(x.shape, dtype=dtype), torch.empty(len(x), 1)
    quantize_rows(x_q, x_scale, x)
    return x_q, x_scale


def pack(name: Name, dtype: torch.dtype = torch.bfloat16, is_invariant: bool = False) -> linear_w8a8.QuantizedLinear:
    packer = linear.LinearPacker(CPU, dtype, quantization=name, batch_invariant=is_invariant)
    packed = packer.pack_linear_many([randn(32, 192), randn(48, 192)], [None, randn(48)])
    assert isinstance(packed, linear_w8a8.QuantizedLinear)
    return packed


@pytest.mark.parametrize("name", NAMES)
def test_each_row_of_a_weight_has_a_scale(name: Name) -> None:
    weight = randn(32, 64) * torch.logspace(-3, 3, 32)[:, None]
    weight[5] = 0
    packed = linear.LinearPacker(CPU, torch.bfloat16, quantization=name).pack_linear(weight)
    assert isinstance(packed, linear_w8a8.QuantizedLinear)
    dtype, largest = linear_w8a8.TYPES[name]
    assert packed.weight.dtype == dtype and packed.kind == f"w8a8 {name}" and packed.nbytes == 32 * 64 + 32 * 4
    restored = packed.weight.float() * packed.scale[:, None]
    step = 2.0**-4 if name == "fp8" else 0.5 / 127
    assert bool(((restored - weight).abs() <= step * weight.abs().amax(1, keepdim=True)).all())
    assert torch.equal(packed.weight.float().abs().amax(1)[weight.abs().amax(1) > 0], torch.full((31,), largest))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_invariant", [False, True])
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
def test_products_are_those_of_the_quantized_values(name: Name, is_invariant: bool, out_dtype: torch.dtype) -> None:
    packed = pack(name, is_invariant=is_invariant)
    assert packed.bias is not None
    for rows in (1, 16, 21):
        x, out = randn(rows, 192, dtype=torch.bfloat16), torch.full((rows, 80), torch.nan, dtype=out_dtype)
        linear.linear(out, x, packed)
        x_q, x_scale = quantized(x, packed.weight.dtype)
        wanted = (x_q.double() * x_scale) @ (packed.weight.double() * packed.scale[:, None]).T + packed.bias.exact
        tolerance = 1e-5 if out_dtype == torch.float32 else 2.0**-8
        torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=1e-3)
        again = torch.full_like(out, torch.nan)
        linear.linear_quantized(again, x_q, x_scale, packed)
        assert torch.equal(again, out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products_are_near_those_of_the_floats(name: Name, dtype: torch.dtype) -> None:
    packed, x = pack(name, dtype), randn(20, 192, dtype=dtype)
    out = torch.full((20, 80), torch.nan, dtype=dtype)
    linear.linear(out, x, packed)
    wanted = x.float() @ torch.cat((randn(32, 192), randn(48, 192))).T + torch.cat((torch.zeros(32), randn(48)))
    assert float((out.float() - wanted).norm() / wanted.norm()) < ERRORS[name]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_has_the_same_bits_alone_and_in_company(name: Name) -> None:
    packed = pack(name, is_invariant=True)
    x, whole = randn(40, 192, dtype=torch.bfloat16), torch.empty(40, 80)
    linear.linear(whole, x, packed)
    for first, last in ((0, 1), (3, 19), (20, 40)):
        out = torch.empty(last - first, 80)
        linear.linear(out, x[first:last], packed)
        assert torch.equal(out, whole[first:last])


def test_what_is_not_quantized() -> None:
    packer = linear.LinearPacker(CPU, torch.bfloat16, quantization="int8")
    assert packer.pack_linear(randn(24, 64)).kind == "bfloat16"  # 24 rows are no multiple of 16
    assert packer.pack_linear(randn(32, 72)).kind == "bfloat16"
    assert packer.pack_embedding(randn(32, 64)).kind == "bfloat16"
    output = packer.pack_output(randn(32, 64))
    assert output.kind == packer.tied_embedding(output).kind == "bfloat16"
    assert linear.quantized_dtype(output) is None
    assert linear.quantized_dtype(packer.pack_linear(randn(32, 64))) == torch.int8
    assert not linear.has_fused_act(packer.pack_linear(randn(32, 64)), 1)


def test_fp8_is_refused_where_tensor_cores_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_w8a8, "chip", lambda device: Chip(108, (8, 0)))
    with pytest.raises(DeviceError, match=r"--quantization fp8.* 8\.9 .* 8\.0"):
        linear.LinearPacker(torch.device("cuda"), torch.bfloat16, quantization="fp8")
    linear.LinearPacker(torch.device("cuda"), torch.bfloat16, quantization="int8")
