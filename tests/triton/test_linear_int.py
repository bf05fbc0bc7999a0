"""Integer weights in Triton's interpreter, against their floats; and the PTX that unpacks them, evaluated here."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.ops.triton import linear, linear_int, linear_int_kernels
from octavo.ops.triton.linear_chip import Chip
from octavo.quant.packed import QuantizedWeight
from support.tensors import randn

CPU = torch.device("cpu")
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}
#: bits, group, mins, type of scales, K: every way through the kernels, whole steps along K and parts of one.
FORMS: dict[str, tuple[int, int, bool, torch.dtype, int]] = {
    "GPTQ": (4, 128, False, torch.float16, 1024),
    "AWQ": (4, 128, True, torch.float16, 640),
    "Q4_K": (4, 32, True, torch.float32, 512),
    "odd-k": (4, 64, False, torch.float16, 192),
    "16-of-4": (4, 16, True, torch.float16, 128),
    "rows-of-4": (4, 576, False, torch.float16, 576),
    "Q8_0": (8, 32, False, torch.float16, 320),
    "Q6_K": (6, 16, False, torch.float32, 256),
    "mins-of-8": (5, 64, True, torch.float16, 192),
    "48-of-8": (8, 48, False, torch.float16, 192),
    "rows-of-8": (8, 256, True, torch.float32, 256),
    "nf4": (4, 64, False, torch.float32, 640),
    "nvfp4": (4, 16, False, torch.float32, 128),
    "e4m3": (8, 128, False, torch.float32, 384),
    "e5m2": (8, 192, False, torch.float32, 192),
}
TABLES: dict[str, Tensor] = {
    "nf4": torch.tensor([-1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461,
                         0.3379, 0.4407, 0.5626, 0.723, 1.0]),
    "nvfp4": torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]),
    "e4m3": torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float(),
    "e5m2": torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).float(),
}  # fmt: skip


def integers(form: str, n: int = 40) -> QuantizedWeight:
    bits, group, has_mins, dtype, k = FORMS[form]
    generator = torch.Generator().manual_seed(n + k + bits + group)
    values = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, generator=generator)
    scales = (0.5 + torch.rand(n, k // group, generator=generator)).to(dtype)
    if form in TABLES:
        if bits == 8:  # what is finite, and not so large that a float16 overflows
            values = (values & 0x80) | (values & 0x7F).clamp(max=0x60)
        return QuantizedWeight(values, bits, group, scales, table=TABLES[form])
    mins = (scales.float() * (1 - torch.rand(n, k // group, generator=generator) * 2.0**bits)).to(dtype)
    return QuantizedWeight(values, bits, group, scales, mins if has_mins else None, 0 if has_mins else 2 ** (bits - 1))


def pack(
    weight: QuantizedWeight, dtype: torch.dtype = torch.bfloat16, bias: Tensor | None = None, **options: Any
) -> Any:
    packed = linear.LinearPacker(CPU, dtype, **options).pack_linear(weight, bias)
    assert isinstance(packed, linear_int.IntLinear)
    return packed


def assert_product(out: Tensor, x: Tensor, weight: QuantizedWeight, bias: Tensor | None, share: float) -> None:
    """out = x @ weight.T + bias, but for `share` of the sum of the magnitudes, and the result's rounding."""
    dense = weight.dequantize().double()
    wanted, size = x.double() @ dense.T, x.double().abs() @ dense.abs().T
    if bias is not None:
        wanted, size = wanted + bias, size + bias.abs()
    error = (out.double() - wanted).abs()
    assert bool((error <= share * size + ROUNDING[out.dtype] * wanted.abs()).all()), float((error / size).max())


# ---- packing ----


@pytest.mark.parametrize("form", FORMS)
def test_packing_loses_nothing(form: str) -> None:
    weight = integers(form)
    packed = pack(weight)
    bits = 4 if weight.bits == 4 else 8
    assert torch.equal(linear_int.unpack_values(packed.packed, packed.K, bits), weight.unpacked())
    assert torch.equal(packed.scales.t(), weight.scales)
    assert (packed.mins is None) == (weight.mins is None)
    assert packed.mins is None or torch.equal(packed.mins.t(), weight.mins)
    assert tuple(weight.shape) == (packed.N, packed.K)
    assert packed.kind == {"nf4": "table4", "nvfp4": "table4", "e4m3": "float8", "e5m2": "float8"}.get(
        form, f"int{bits}"
    )
    scale_bytes = weight.scales.nbytes * (1 if weight.mins is None else 2)
    assert packed.nbytes == weight.unpacked().numel() * bits // 8 + scale_bytes


def test_weights_of_one_form_are_stacked_as_one() -> None:
    weights = [integers("GPTQ", 24), integers("GPTQ", 8), replace(integers("GPTQ", 16), zero=7)]
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear_many(weights)
    assert isinstance(packed, linear.StackedLinear) and [part.N for part in packed.parts] == [32, 16]


@pytest.mark.parametrize(("k", "group"), [(72, 24), (96, 32), (48, 16)])
def test_what_fits_no_tile_becomes_dense(k: int, group: int) -> None:
    values = torch.randint(0, 16, (16, k), dtype=torch.uint8)
    weight = QuantizedWeight(values, 4, group, torch.ones(16, k // group, dtype=torch.float16), zero=8)
    packed = linear.LinearPacker(CPU, torch.bfloat16).pack_linear(weight)
    assert packed.kind == "bfloat16"
    x, out = randn(2, k, dtype=torch.bfloat16), torch.empty(2, 16)
    linear.linear(out, x, packed)
    torch.testing.assert_close(out, x.float() @ weight.dequantize().T, rtol=1e-5, atol=1e-4)


# ---- products ----


@pytest.mark.parametrize("form", FORMS)
def test_few_rows(form: str) -> None:
    weight, bias = integers(form), randn(40)
    for rows, dtype in ((1, torch.bfloat16), (5, torch.float16), (16, torch.bfloat16)):
        packed, x, out = pack(weight, dtype, bias), randn(rows, weight.shape[1], dtype=dtype), torch.empty(rows, 40)
        linear.linear(out, x, packed)
        # The integers are exact; only where scales change within a product are the weights rounded.
        is_exact = packed.unit >= 32 and form != "nf4"
        assert_product(out, x, weight, bias, 1e-5 if is_exact else ROUNDING[dtype])
    rounded = torch.full((16, 40), torch.nan, dtype=dtype)
    linear.linear(rounded, x, packed)
    assert torch.equal(rounded, out.to(dtype))


@pytest.mark.parametrize("form", FORMS)
def test_more_rows(form: str) -> None:
    weight, bias = integers(form), randn(40)
    for rows, dtype in ((17, torch.bfloat16), (70, torch.float16)):
        packed, x, out = pack(weight, dtype, bias), randn(rows, weight.shape[1], dtype=dtype), torch.empty(rows, 40)
        linear.linear(out, x, packed)
        assert_product(out, x, weight, bias, ROUNDING[dtype])


@pytest.mark.parametrize("form", ["GPTQ", "Q4_K", "rows-of-4", "Q6_K", "nf4", "e4m3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("is_invariant", [False, True])
def test_many_rows_and_float32_go_by_pieces(
    form: str, dtype: torch.dtype, is_invariant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, bias = integers(form), randn(40)
    columns = weight.shape[1]
    monkeypatch.setattr(linear_int, "MANY_ROWS", 20)
    monkeypatch.setattr(linear_int, "_PIECE", 17 * columns)  # three pieces
    packed = pack(weight, dtype, bias, batch_invariant=is_invariant)
    x, out = randn(20, columns, dtype=dtype), torch.full((20, 40), torch.nan)
    linear.linear(out, x, packed)
    assert_product(out, x, weight, bias, 1e-5 if dtype == torch.float32 else ROUNDING[dtype])


TILES = {(tile.block_n, tile.block_m): tile for tile in (*linear_int._WGMMA_TILES, *linear_int._MMA_TILES)}


@pytest.mark.parametrize("tile", TILES.values(), ids=lambda tile: f"{tile.block_n}x{tile.block_m}")
def test_every_tile_and_every_share_of_k(tile: linear_int.Tile) -> None:
    weight, bias = integers("AWQ", 72), randn(72)
    packed, x = pack(weight, bias=bias), randn(20, 640, dtype=torch.bfloat16)
    for splits in (1, 4):  # five tiles along K, so that of four programs one has none
        out = torch.full((20, 80), torch.nan)
        linear_int.int_tiles(out[:, :72], x, packed, (tile, splits))
        assert_product(out[:, :72], x, weight, bias, ROUNDING[torch.bfloat16])
        assert out[:, 72:].isnan().all()


@pytest.mark.parametrize("form", ["GPTQ", "Q4_K", "Q6_K", "nf4", "e4m3"])
def test_a_row_has_the_same_bits_alone_and_in_company(form: str) -> None:
    weight = integers(form, 72)
    packed, x = pack(weight, batch_invariant=True), randn(140, weight.shape[1], dtype=torch.bfloat16)
    whole = torch.empty(140, 72)
    linear.linear(whole, x, packed)
    for first, last in ((0, 1), (139, 140), (3, 20), (60, 110)):
        out = torch.empty(last - first, 72)
        linear.linear(out, x[first:last], packed)
        assert torch.equal(out, whole[first:last])


@pytest.mark.parametrize("form", ["GPTQ", "Q4_K", "Q6_K"])
def test_few_rows_have_the_same_bits_in_company(form: str) -> None:
    weight = integers(form)
    packed, x, whole = pack(weight), randn(16, weight.shape[1], dtype=torch.bfloat16), torch.empty(16, 40)
    linear.linear(whole, x, packed)
    for first, last in ((0, 1), (2, 9)):
        out = torch.empty(last - first, 40)
        linear.linear(out, x[first:last], packed)
        assert torch.equal(out, whole[first:last])


def test_large_products_share_k_only_where_programs_are_few() -> None:
    hopper = Chip(132, (9, 0))
    assert linear_int.choose_tile(32, 4096, 14_336, False, hopper)[1] > 1
    assert linear_int.choose_tile(32, 28_672, 4096, False, hopper)[1] == 1
    assert linear_int.choose_tile(1000, 28_672, 4096, False, hopper)[0].block_m == 128
    for rows in (1, 17, 64, 500):
        assert linear_int.choose_tile(rows, 4096, 14_336, True, hopper)[1] == 1


# ---- PTX ----


def _pairs(dtype: torch.dtype, bits: int) -> Tensor:
    return torch.tensor([bits & 0xFFFF, bits >> 16], dtype=torch.int32).to(torch.int16).view(dtype)


def _register(pair: Tensor) -> int:
    low, high = (int(half) & 0xFFFF for half in pair.view(torch.int16))
    return high << 16 | low


def _float(bits: int) -> float:
    return float(torch.tensor(bits - (bits >> 31 << 32), dtype=torch.int32).view(torch.float32))


def _bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32)) & 0xFFFF_FFFF


def _prmt(a: int, b: int, selector: int) -> int:
    source = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    return int.from_bytes(bytes(source[selector >> 4 * i & 7] for i in range(4)), "little")


def _lop3(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))


def _fma(dtype: torch.dtype) -> Callable[..., int]:
    def fma(*registers: int) -> int:
        a, b, c = (_pairs(dtype, register).double() for register in registers)
        return _register((a * b + c).to(dtype))

    return fma


_OPERATIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "and.b32": lambda a, b: a & b,
    "shr.u32": lambda a, b: a >> b,
    "prmt.b32": _prmt,
    "lop3.b32": _lop3,
    "fma.rn.bf16x2": _fma(torch.bfloat16),
    "fma.rn.f16x2": _fma(torch.float16),
    "add.f32": lambda a, b: _bits(_float(a) + _float(b)),
    # The first source becomes the upper half.
    "cvt.rn.bf16x2.f32": lambda a, b: _register(torch.tensor([_float(b), _float(a)]).to(torch.bfloat16)),
}


def evaluate(ptx: str, packed: int) -> list[int]:
    """The six result registers of the PTX for one register of packed bytes."""
    values = {"$6": packed}

    def value(name: str) -> int:
        if name.startswith("0f"):
            return int(name[2:], 16)
        return values[name] if name in values else int(name, 0)

    for line in ptx.strip().removeprefix("{").removesuffix("}").split(";"):
        operation, _, rest = line.strip().partition(" ")
        if operation and operation != ".reg":
            target, *sources = re.split(r",\s*", rest)
            values[target] = _OPERATIONS[operation](*map(value, sources))
    return [values[f"${i}"] for i in range(6)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bits", "zero"), [(4, 8), (4, 0), (4, 7), (8, 128), (8, 0), (8, 32)])
def test_the_ptx_unpacks_exactly(dtype: torch.dtype, bits: int, zero: int) -> None:
    ptx = linear_int_kernels.unpacking(bits, zero, dtype)
    for first in range(0, 256, 4):
        values = torch.tensor([(first + 37 * i) % 256 if first % 8 else first + i for i in range(4)], dtype=torch.uint8)
        found = evaluate(ptx, int.from_bytes(bytes(values.tolist()), "little"))
        pairs = [_pairs(dtype, register) for register in found]
        low, high, ones = (torch.cat(pairs[i : i + 2]) for i in (0, 2, 4))
        wanted = (values & 0xF, values >> 4) if bits == 4 else (values, values)
        assert torch.equal(low.float(), wanted[0].float() - zero)
        assert torch.equal(high.float(), wanted[1].float() - zero)
        assert torch.equal(ones.float(), torch.ones(4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TABLES)
def test_the_ptx_looks_values_up(dtype: torch.dtype, name: str) -> None:
    """Of every code: of 16 values rounded to the type, of float8 exactly, subnormals and the sign of zero too."""
    table = TABLES[name]
    ptx = linear_int_kernels.unpacking_table(table.numpy().tobytes(), dtype)
    for first in range(0, 256, 4):
        codes = torch.tensor([(first + 37 * i) % 256 if first % 8 else first + i for i in range(4)])
        found = evaluate(ptx, int.from_bytes(bytes(codes.tolist()), "little"))
        pairs = [_pairs(dtype, register) for register in found]
        low, high, ones = (torch.cat(pairs[i : i + 2]) for i in (0, 2, 4))
        wanted = (codes & 0xF, codes >> 4) if len(table) == 16 else (codes, codes)
        for ours, theirs in zip((low, high), wanted, strict=True):
            values = table[theirs].to(dtype)
            real = values.isfinite()
            assert torch.equal(ours.view(torch.int16)[real], values.view(torch.int16)[real])
        assert torch.equal(ones.float(), torch.ones(4))


def test_a_table_of_256_that_is_no_float8_becomes_dense() -> None:
    values = torch.randint(0, 256, (16, 64), dtype=torch.uint8)
    weight = QuantizedWeight(values, 8, 64, torch.ones(16, 1), table=torch.linspace(-1, 1, 256))
    assert linear.LinearPacker(CPU, torch.bfloat16).pack_linear(weight).kind == "bfloat16"
