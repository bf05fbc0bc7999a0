"""Norms, activations and quantized inputs in Triton's interpreter, against the reference in float32."""

from __future__ import annotations

import pytest
import torch

from octavo.ops import reference
from octavo.ops.operations import GateKind
from octavo.ops.triton import elementwise, gated_delta, heads
from support.tensors import randn

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 5), (3, 64), (2, 577)]
#: Of a result rounded to the type.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype, seed=1), randn(shape[1])
    expected, summed = torch.empty(shape), residual.float().clone()
    reference.rms_norm(expected, x.float(), weight, 1e-5)
    out = torch.full(shape, torch.nan, dtype=dtype)
    elementwise.rms_norm(out, x, weight, 1e-5)
    close(out, expected, dtype)
    in_place = x.clone()
    elementwise.rms_norm(in_place, in_place, weight, 1e-5)
    assert torch.equal(in_place, out)
    reference.add_rms_norm(expected, summed, x.float(), weight, 1e-6)
    elementwise.add_rms_norm(out, residual, x, weight, 1e-6)
    close(out, expected, dtype)
    assert torch.equal(residual, summed.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norms(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, residual, weight = randn(*shape, dtype=dtype) + 3, randn(*shape, dtype=dtype, seed=1), randn(shape[1])
    for bias in (None, randn(shape[1], seed=2)):
        expected, summed, added = torch.empty(shape), residual.float().clone(), residual.clone()
        out = torch.full(shape, torch.nan, dtype=dtype)
        reference.layer_norm(expected, x.float(), weight, bias, 1e-5)
        elementwise.layer_norm(out, x, weight, bias, 1e-5)
        close(out, expected, dtype)
        reference.add_layer_norm(expected, summed, x.float(), weight, bias, 1e-6)
        elementwise.add_layer_norm(out, added, x, weight, bias, 1e-6)
        close(out, expected, dtype)
        assert torch.equal(added, summed.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu", "relu", "quick_gelu", "relu2"])
def test_plain_activations(kind: str, dtype: torch.dtype) -> None:
    for rows, width in (*SHAPES, (2, 1100)):
        x = (randn(rows, width) * 4).to(dtype)
        expected, out = torch.empty(rows, width), torch.full((rows, width), torch.nan, dtype=dtype)
        reference.act(expected, x.float(), kind)
        elementwise.act(out, x, kind)
        close(out, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu", "relu", "quick_gelu", "relu2"])
def test_activations(kind: str, dtype: torch.dtype) -> None:
    for rows, width in (*SHAPES, (2, 1100)):
        # A square of more would be out of float16's range.
        gate_up = (randn(rows, 2 * width) * (4 if kind == "relu2" else 20)).to(dtype)
        expected, out = torch.empty(rows, width), torch.full((rows, width), torch.nan, dtype=dtype)
        reference.act_mul(expected, gate_up.float(), kind)
        elementwise.act_mul(out, gate_up, kind)
        torch.testing.assert_close(out.float(), expected, rtol=max(TOLERANCE[dtype], 1e-4), atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slopes", [(0.8, -0.3), (25.0, 3.0)])
def test_xielu(slopes: tuple[float, float], dtype: torch.dtype) -> None:
    x, parameters = (randn(2, 1100) * 4).to(dtype), torch.tensor(slopes)
    x[0] *= 0.01
    expected, out = torch.empty(2, 1100), torch.full((2, 1100), torch.nan, dtype=dtype)
    reference.act(expected, x.float(), "xielu", parameters)
    elementwise.act(out, x, "xielu", parameters)
    close(out, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("own", [1, 3])
def test_norms_of_parts_leave_the_rest_alone(own: int, dtype: torch.dtype) -> None:
    for kind, bias in (("rms", None), ("layer", None), ("layer", randn(own * 20, seed=2))):
        x = randn(2, 100, dtype=dtype) + 1
        expected = x.float().clone()
        reference.norm_parts_(expected, 8, 3, 20, randn(own * 20), bias, 1e-5, kind)
        heads.norm_parts_(x, 8, 3, 20, randn(own * 20), bias, 1e-5, kind)
        close(x, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_caps(dtype: torch.dtype) -> None:
    residual, x = randn(3, 700, dtype=dtype), randn(3, 700, dtype=dtype, seed=1)
    expected = (residual.float() + x.float()).to(dtype)
    elementwise.add_(residual, x)
    assert torch.equal(residual, expected)
    logits = randn(3, 700) * 50
    capped = logits.clone()
    reference.soft_cap_(capped, 30.0)
    elementwise.soft_cap_(logits, 30.0)
    torch.testing.assert_close(logits, capped, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds(dtype: torch.dtype) -> None:
    x = randn(3, 700, dtype=dtype) * 3
    expected = x.clamp(-2.5, 2.5)
    heads.clip_(x, 2.5)
    assert torch.equal(x, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["sigmoid", "silu"])
def test_gates(kind: GateKind, dtype: torch.dtype) -> None:
    x, gates = randn(3, 700, dtype=dtype), randn(3, 700, dtype=dtype, seed=1) * 4
    expected = x.clone()
    reference.gate_(expected, gates, kind)
    gated_delta.gate_(x, gates, kind)
    torch.testing.assert_close(x, expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5)


def test_ids_that_never_came_to_the_host_are_looked_up() -> None:
    """Where nothing could be sampled there is token 0, which the embedding has."""
    ids, last = (
        torch.tensor([5, -1, 0, -4, 7, -3], dtype=torch.int32),
        torch.tensor([11, 12, -1, 14], dtype=torch.int32),
    )
    expected = ids.clone()
    reference.resolve_ids(expected, last)
    elementwise.resolve_ids(ids, last)
    assert ids.tolist() == expected.tolist() == [5, 11, 0, 14, 7, 0]


def quantized(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """What `quantize_rows` means, in plain torch."""
    limit = 127.0 if dtype == torch.int8 else 448.0
    largest = x.abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / limit, 1.0)
    return (x / scale).round().to(dtype) if dtype == torch.int8 else (x / scale).to(dtype), scale


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_inputs_are_those_of_the_rows(dtype: torch.dtype) -> None:
    rows, width = 4, 577
    x = randn(rows, width)
    x[1] = 0
    x[2, 7] = 1e4
    values, scale = torch.empty(rows, width, dtype=dtype), torch.empty(rows, 1)

    def check(wanted: torch.Tensor) -> None:
        expected, expected_scale = quantized(wanted, dtype)
        torch.testing.assert_close(scale, expected_scale, rtol=1e-5, atol=0)
        # A value on the border between two may fall on either side.
        step = 1.0 if dtype == torch.int8 else 0.13 * expected.float().abs().clamp(min=2**-6)
        off = (values.float() - expected.float()).abs()
        assert (off <= step).all() and (off > 0).float().mean() < 0.01

    elementwise.quantize_rows(values, scale, x)
    check(x)
    assert scale[1] == 1 and not values[1].float().any()
    weight, residual = randn(width), randn(rows, width, seed=3)
    normed, summed = torch.empty(rows, width), residual.clone()
    elementwise.add_rms_norm_quant(values, scale, residual, x, weight, 1e-5)
    reference.add_rms_norm(normed, summed, x, weight, 1e-5)
    check(normed)
    assert torch.equal(residual, summed)
    gate_up = randn(rows, 2 * width)
    elementwise.act_mul_quant(values, scale, gate_up, "silu")
    reference.act_mul(normed, gate_up, "silu")
    check(normed)


def test_a_row_alone_has_the_bits_that_it_has_in_company() -> None:
    x, weight = randn(5, 577, dtype=torch.bfloat16), randn(577)
    whole, alone = torch.empty_like(x), torch.empty(1, 577, dtype=torch.bfloat16)
    elementwise.rms_norm(whole, x, weight, 1e-5)
    elementwise.rms_norm(alone, x[3:4].contiguous(), weight, 1e-5)
    assert torch.equal(alone[0], whole[3])


def test_no_rows_are_no_launch() -> None:
    empty, weight = torch.empty(0, 64), torch.ones(64)
    elementwise.rms_norm(empty, empty, weight, 1e-5)
    elementwise.add_rms_norm(empty, empty.clone(), empty, weight, 1e-5)
    elementwise.act_mul(empty, torch.empty(0, 128), "silu")
