"""Products by tiles, where a row's bits do not depend on the batch: in Triton's interpreter, and as they compile."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from octavo.ops.triton import linear, linear_tiles
from octavo.ops.triton.linear_chip import Chip
from support.tensors import randn

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_products(dtype: torch.dtype) -> None:
    weight, bias = randn(100, 200, dtype=dtype), randn(100)
    packed = linear.LinearPacker(CPU, dtype, batch_invariant=True).pack_linear(weight, bias)
    for rows in (1, 16, 33, 150):
        x, out = randn(rows, 200, dtype=dtype), torch.full((rows, 100), torch.nan)
        linear.linear(out, x, packed)
        torch.testing.assert_close(out, x.float() @ weight.float().T + bias, rtol=1e-5, atol=1e-4)
        rounded = torch.full((rows, 100), torch.nan, dtype=dtype)
        linear.linear(rounded, x, packed)
        assert torch.equal(rounded, out.to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("k", [192, 70])
def test_a_row_has_the_same_bits_alone_and_in_company(dtype: torch.dtype, k: int) -> None:
    packed = linear.LinearPacker(CPU, dtype, batch_invariant=True).pack_linear(randn(72, k), randn(72))
    x, whole = randn(140, k, dtype=dtype), torch.empty(140, 72)
    linear.linear(whole, x, packed)
    for first, last in ((0, 1), (139, 140), (3, 20), (60, 110)):
        out = torch.empty(last - first, 72)
        linear.linear(out, x[first:last], packed)
        assert torch.equal(out, whole[first:last])


TILES = sorted({*linear_tiles._WGMMA_TILES, *linear_tiles._MMA_TILES}, key=str)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.block_n}x{tile.block_m}")
@pytest.mark.parametrize("use_tma", [True, False])
def test_bits_do_not_depend_on_the_tile(tile: linear_tiles.Tile, use_tma: bool) -> None:
    weight, x = randn(136, 136, dtype=torch.bfloat16), randn(70, 136, dtype=torch.bfloat16)
    expected, out = torch.empty(70, 136), torch.full((70, 136), torch.nan)
    linear_tiles.multiply_tiles(expected, x, weight, None)
    linear_tiles.multiply_tiles(out, x, weight, None, tile=tile, use_tma=use_tma)
    assert torch.equal(out, expected)


def test_rows_may_lie_apart() -> None:
    weight, wide = randn(24, 64, dtype=torch.bfloat16), randn(5, 196, dtype=torch.bfloat16)
    packed = linear.LinearPacker(CPU, torch.bfloat16, batch_invariant=True).pack_linear(weight)
    for x in (wide[:, 64:128], wide[:, 3:67]):  # the second begins where no hardware copy may
        out = torch.full((5, 40), torch.nan)
        linear.linear(out[:, 8:32], x, packed)
        torch.testing.assert_close(out[:, 8:32], x.float() @ weight.float().T, rtol=1e-5, atol=1e-4)
        assert out[:, :8].isnan().all() and out[:, 32:].isnan().all()


def test_the_tile_follows_the_shape() -> None:
    hopper = Chip(132, (9, 0))
    assert linear_tiles.choose_tile(1, 28_672, 8192, hopper).block_m == 16
    assert linear_tiles.choose_tile(4096, 28_672, 8192, hopper) == linear_tiles.Tile(128, 256, 8, 4)
    for rows in (1, 16, 64, 256, 4096):
        for the_chip in (hopper, Chip(108, (8, 0))):
            tile = linear_tiles.choose_tile(rows, 4096, 8192, the_chip)
            assert tile.block_m < 2 * max(rows, 16)


_COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from octavo.ops.triton.linear_tiles import variants
for v in variants():
    if v.constexprs["PRECISION"] == "ieee":
        continue
    names = v.kernel.arg_names
    signature = {name: v.signature.get(name, "constexpr") for name in names}
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in v.divisible}
    source = ASTSource(v.kernel, signature, dict(v.constexprs), attributes)
    options = {"num_warps": v.num_warps, "num_stages": v.num_stages}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "wgmma.mma_async" in ptx and "mma.sync" not in ptx, v.name
    assert ("cp.async.bulk.tensor" if v.constexprs["TMA"] else "cp.async.cg") in ptx, v.name
"""


@pytest.mark.slow
def test_all_tiles_use_the_same_instruction_on_hopper() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", _COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
