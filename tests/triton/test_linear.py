"""Matrices that are not quantized, stacks, and embeddings: in Triton's interpreter, against products in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.ops import reference
from octavo.ops.triton import linear, linear_dense
from octavo.quant.packed import QuantizedWeight
from support.tensors import randn

CPU = torch.device("cpu")
HALVES = [torch.bfloat16, torch.float16]
#: Of one rounding to the type.
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
#: Of sums in float32, as a share of the sum of the magnitudes.
SUMS = 1e-5


def integers(n: int, k: int, bits: int, group: int, has_mins: bool, dtype: torch.dtype = torch.float16) -> Any:
    generator = torch.Generator().manual_seed(n + k + bits + group)
    values = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, generator=generator)
    scales = (0.5 + torch.rand(n, k // group, generator=generator)).to(dtype)
    mins = (scales.float() * -(2.0 ** (bits - 1)) + 1).to(dtype) if has_mins else None
    return QuantizedWeight(values, bits, group, scales, mins, 0 if has_mins else 2 ** (bits - 1))


def assert_product(
    out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, share: float = SUMS, also: float = 0.0
) -> None:
    """out = x @ weight.T + bias, but for `share` of the sum of the magnitudes, and the result's rounding."""
    wanted, size = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    if bias is not None:
        wanted, size = wanted + bias.double(), size + bias.double().abs()
    error = (out.double() - wanted).abs()
    assert bool((error <= share * size + (ROUNDING[out.dtype] + also) * wanted.abs()).all()), float(error.max())


# ---- dense ----


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
@pytest.mark.parametrize("shape", [(40, 64), (33, 528), (16, 72)])
def test_dense_with_few_rows_and_more(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    n, k = shape
    weight, bias = randn(n, k, dtype=dtype), randn(n)
    packer = linear.LinearPacker(CPU, dtype)
    for rows in (1, 3, 16, 17):
        x = randn(rows, k, dtype=dtype, seed=rows)
        for out_dtype in {dtype, torch.float32}:
            out = torch.full((rows, n), torch.nan, dtype=out_dtype)
            linear.linear(out, x, packer.pack_linear(weight, bias))
            # cuBLAS takes the bias in the activations' type.
            assert_product(out, x, weight, bias, SUMS + ROUNDING[dtype])
    out = torch.full((2, n), torch.nan, dtype=dtype)
    linear.linear(out, randn(2, k, dtype=dtype), packer.pack_linear(weight))
    assert_product(out, randn(2, k, dtype=dtype), weight)


@pytest.mark.parametrize("rows", [2, 20])
def test_rows_may_lie_apart(rows: int) -> None:
    weight, wide = randn(24, 64, dtype=torch.bfloat16), randn(rows, 192, dtype=torch.bfloat16)
    x, out = wide[:, 64:128], torch.full((rows, 100), torch.nan, dtype=torch.bfloat16)
    linear.linear(out[:, 32:56], x, linear.LinearPacker(CPU, torch.bfloat16).pack_linear(weight))
    assert_product(out[:, 32:56], x, weight)
    assert out[:, :32].isnan().all() and out[:, 56:].isnan().all()


def test_no_rows_are_no_work() -> None:
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear(randn(24, 64))
    linear.linear(torch.empty(0, 24), torch.empty(0, 64, dtype=torch.bfloat16), packed)


def test_the_kernel_for_few_rows_gives_a_row_the_same_bits_in_company() -> None:
    weight, x = randn(40, 256, dtype=torch.bfloat16), randn(8, 256, dtype=torch.bfloat16)
    whole = torch.empty(8, 40)
    linear_dense.few_rows(whole, x, weight, None)
    for rows in (1, 2, 5):
        alone = torch.empty(rows, 40)
        linear_dense.few_rows(alone, x[:rows], weight, None)
        assert torch.equal(alone, whole[:rows])


def test_weights_of_any_float_type_become_the_activations() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear(randn(16, 64, dtype=dtype))
        assert isinstance(packed, linear_dense.DenseLinear)
        assert torch.equal(packed.weight, randn(16, 64, dtype=dtype).to(torch.bfloat16))
        assert (packed.N, packed.K, packed.kind, packed.nbytes) == (16, 64, "bfloat16", 16 * 64 * 2)


def test_a_weight_that_does_not_begin_at_16_bytes_is_moved() -> None:
    memory = torch.zeros(16 * 64 + 1, dtype=torch.bfloat16)
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear(memory[1:].view(16, 64))
    assert isinstance(packed, linear_dense.DenseLinear) and packed.weight.data_ptr() % 16 == 0


def test_tiles_fill_the_gpu_and_share_reads_of_x() -> None:
    assert linear_dense.few_rows_tile(1, 1024, 2, 132).block_n == 16
    assert linear_dense.few_rows_tile(16, 4096, 2, 132).block_n == 16
    assert linear_dense.few_rows_tile(16, 28_672, 2, 132).block_n == 32
    for rows in range(1, 17):
        for n in (576, 4096, 28_672, 151_936):
            tile = linear_dense.few_rows_tile(rows, n, 2, 132)
            assert tile.block_m >= rows and tile.stages >= 4
            bytes_under_way = (tile.stages - 1) * linear_dense.WARPS * tile.slice_k * 2 * tile.block_n
            assert bytes_under_way >= 24 << 10


def test_what_few_rows_means() -> None:
    assert linear_dense.choose(16, 4096, torch.bfloat16) == "few_rows"
    assert linear_dense.choose(17, 4096, torch.bfloat16) == "library"
    assert linear_dense.choose(1, 4096, torch.float32) == "library"
    assert linear_dense.choose(1, 4104, torch.bfloat16) == "library"  # rows at odd multiples of 16 bytes


# ---- stacks ----


def test_stacked_weights_of_one_kind_are_one_matrix() -> None:
    parts = [randn(24, 64, dtype=torch.bfloat16), randn(8, 64, dtype=torch.float32)]
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear_many(parts, [None, randn(8)])
    assert isinstance(packed, linear_dense.DenseLinear)
    x, out = randn(3, 64, dtype=torch.bfloat16), torch.empty(3, 32)
    linear.linear(out, x, packed)
    rounded = torch.cat([part.to(torch.bfloat16).float() for part in parts])
    assert_product(out, x, rounded, torch.cat((torch.zeros(24), randn(8))))


@pytest.mark.parametrize("rows", [2, 18])
def test_stacked_weights_of_many_kinds_keep_their_own(rows: int) -> None:
    parts = [
        integers(24, 128, 4, 32, True),
        integers(16, 128, 4, 32, True),
        integers(8, 128, 6, 16, False),
        randn(8, 128, dtype=torch.bfloat16),
    ]
    biases = [randn(24), None, None, randn(8)]
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear_many(parts, biases)
    assert isinstance(packed, linear.StackedLinear) and [part.N for part in packed.parts] == [40, 8, 8]
    assert (packed.N, packed.K, packed.kind) == (56, 128, "int4+int8+bfloat16")
    assert packed.nbytes == sum(part.nbytes for part in packed.parts)
    expected = reference.pack_linear_many(parts, biases)
    x, out = randn(rows, 128, dtype=torch.bfloat16), torch.full((rows, 56), torch.nan, dtype=torch.bfloat16)
    linear.linear(out, x, packed)
    assert_product(out, x, expected.weight, expected.bias, SUMS + ROUNDING[torch.bfloat16])


def test_weights_and_biases_must_fit() -> None:
    packer = linear.LinearPacker(CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="columns"):
        packer.pack_linear_many([randn(4, 8), randn(4, 6)])
    with pytest.raises(ValueError, match="does not fit"):
        packer.pack_linear(randn(4, 8), randn(3))
    with pytest.raises(ValueError, match="nothing"):
        packer.pack_linear_many([])


def test_only_one_matrix_is_moved_at_a_time() -> None:
    moved: list[torch.Size] = []

    def to_device(tensor: Tensor) -> Tensor:
        moved.append(tensor.shape)
        return tensor

    packer = linear.LinearPacker(CPU, torch.bfloat16, to_device=to_device)
    packer.pack_linear_many([randn(8, 64), integers(8, 64, 8, 32, True), integers(8, 32, 4, 32, False)][:2])
    packer.pack_linear(integers(8, 32, 4, 32, False))  # K fits no tile: dense
    assert moved == [(8, 64), (8, 64), (8, 2), (8, 2), (8, 32)]


# ---- gated activations ----


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("form", ["dense", "int4", "mins"])
def test_fused_activations(form: str, kind: str) -> None:
    inter, k = 40, 192
    parts: list[Any] = [randn(inter, k, seed=i).to(torch.bfloat16) for i in (1, 2)]
    if form != "dense":
        parts = [integers(inter, k, 4, 64, form == "mins"), integers(inter, k, 4, 64, form == "mins")]
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear_many(parts, [randn(inter), None])
    expected = reference.pack_linear_many(parts, [randn(inter), None])
    for rows in (1, 3, 16):
        assert linear.has_fused_act(packed, rows)
        x = randn(rows, k, dtype=torch.bfloat16) / 4
        out = torch.full((rows, inter), torch.nan, dtype=torch.bfloat16)
        linear.linear_act(out, x, packed, kind)
        wanted = torch.empty(rows, inter)
        reference.act_mul(wanted, F.linear(x.float(), expected.weight, expected.bias), kind)
        torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)
    assert not linear.has_fused_act(packed, 17)


def test_what_has_no_fused_activation() -> None:
    weights: list[Any] = [randn(16, 64), integers(16, 64, 8, 32, True)]
    stacked = linear.LinearPacker(CPU, torch.bfloat16).pack_linear_many(weights)
    invariant = linear.LinearPacker(CPU, torch.bfloat16, batch_invariant=True)
    assert not linear.has_fused_act(stacked, 1)
    # With more rows the product would be another kernel's, with other bits.
    assert not any(linear.has_fused_act(invariant.pack_linear(weight), 1) for weight in weights)


# ---- embeddings ----


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32])
def test_embedding_of_a_dense_table(dtype: torch.dtype) -> None:
    packer, weight = linear.LinearPacker(CPU, dtype), randn(37, 1100, dtype=dtype)
    tied = packer.tied_embedding(packer.pack_linear(weight))
    for table in (packer.pack_embedding(weight), tied):
        assert (table.N, table.K, table.nbytes) == (37, 1100, 1100 * dtype.itemsize)
        ids, out = torch.tensor([36, 0, 5, 5], dtype=torch.int32), torch.full((4, 1100), torch.nan, dtype=dtype)
        linear.embedding(out, ids, table, 33.94)
        torch.testing.assert_close(out, (weight[ids.long()].float() * 33.94).to(dtype), rtol=ROUNDING[dtype], atol=0)
    linear.embedding(out[:0], ids[:0], tied)


@pytest.mark.parametrize(("bits", "group", "has_mins"), [(4, 32, True), (4, 64, False), (6, 16, False), (8, 32, True)])
def test_embedding_of_integers(bits: int, group: int, has_mins: bool) -> None:
    packer, weight = linear.LinearPacker(CPU, torch.float32), integers(37, 192, bits, group, has_mins)
    ids, out = torch.tensor([36, 0, 5, 5], dtype=torch.int32), torch.full((4, 192), torch.nan)
    linear.embedding(out, ids, packer.tied_embedding(packer.pack_linear(weight)), 3.0)
    torch.testing.assert_close(out, 3 * weight.dequantize()[ids.long()], rtol=1e-6, atol=1e-6)


def test_an_invariant_table_may_have_more_columns() -> None:
    packer, weight = linear.LinearPacker(CPU, torch.bfloat16, batch_invariant=True), randn(9, 70)
    out = torch.full((1, 70), torch.nan, dtype=torch.bfloat16)
    linear.embedding(out, torch.tensor([8], dtype=torch.int32), packer.tied_embedding(packer.pack_linear(weight)))
    assert torch.equal(out[0], weight[8].to(torch.bfloat16))


def test_columns_in_another_order_and_values_of_a_table() -> None:
    """What GPTQ's act-order, float8 and nf4 come as: all stay small."""
    plain = integers(48, 128, 4, 32, has_mins=True, dtype=torch.float32)
    ordered = replace(plain, order=torch.randperm(128, generator=torch.Generator().manual_seed(1)))
    codes = torch.randint(0, 16, (16, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    table = QuantizedWeight(codes, 4, 64, torch.rand(16, 2), table=torch.linspace(-1, 1, 16))
    packer = linear.LinearPacker(CPU, torch.bfloat16)
    packed = packer.pack_linear_many([ordered, ordered, plain, table])
    assert packed.kind == "int4+table4"
    dense = torch.cat([weight.dequantize() for weight in (ordered, ordered, plain, table)])
    for rows in (1, 17):
        x = randn(rows, 128, dtype=torch.bfloat16, seed=rows)
        out = torch.full((rows, len(dense)), torch.nan, dtype=torch.float32)
        linear.linear(out, x, packed)
        assert_product(out, x, dense, share=2.0**-8)
    rows_of_it = torch.empty(2, 128)
    linear.embedding(rows_of_it, torch.tensor([3, 40], dtype=torch.int32), packer.pack_embedding(ordered))
    torch.testing.assert_close(rows_of_it, ordered.dequantize()[[3, 40]], rtol=2.0**-8, atol=0)
