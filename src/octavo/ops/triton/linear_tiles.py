"""Products whose rows do not depend on how many others there are: bfloat16 and float16 by tiles, int8, float8.

Each output is one chain of tensor-core products of 16 columns (32 of one byte) in ascending order of K, into one
accumulator: no part of K is summed apart, whatever M is. On sm_90 all tiles use wgmma, with 64 rows of the weight as
its first operand and 16 to 256 rows of x as its second; on sm_80 all use mma.sync. Only how many outputs an instruction
has beside a given one depends on the tile, and none is made of another's operands. Columns behind K are zeros, which
add nothing. float32, which tensor cores would round, is multiplied by fused multiply-adds in one tile for all M.

Programs stay on their multiprocessor and take one tile after the other (Hopper: copied by the hardware, so that the
next tile's first columns arrive while the last one is stored); tiles go in groups that share rows of both matrices in
L2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

import triton
from octavo.ops.triton.launching import jit
from octavo.ops.triton.linear_chip import Chip, chip, is_aligned
from octavo.ops.triton.linear_dense import SHAPES, Bias
from octavo.ops.triton.variants import TYPE_NAMES, Variant

#: Bytes of a row that one step along K takes, for every tile: a line of the cache, the widest that wgmma reads.
_STEP_BYTES: Final = 128
#: Tiles of the weight that are taken for each tile of x before the next of x.
_GROUP: Final = 8
#: Shared memory of an H100's multiprocessor, for all blocks on it.
_SHARED_BYTES: Final = 224 << 10
_FLOAT32: Final = torch.float32


@jit(do_not_specialize=["M"])
def _tiles_kernel(
    out, x, w, bias, x_scale, w_scale, M, N, K, stride_out, stride_x, stride_w,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
    HAS_BIAS: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out [M, N] = x [M, K] @ w [N, K].T. With TMA, x and w are descriptors; their parts outside are zero."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=TMA):
        first_n = tile // (GROUP * tiles_m) * GROUP
        width = min(tiles_n - first_n, GROUP)
        place = tile % (GROUP * tiles_m)
        start_n = (first_n + place % width) * BLOCK_N
        start_m = place // width * BLOCK_M
        n = start_n + tl.arange(0, BLOCK_N)
        m = start_m + tl.arange(0, BLOCK_M)
        n_mask, m_mask = n < N, m < M
        acc = tl.zeros((BLOCK_N, BLOCK_M), ACC)
        for k in range(0, K, BLOCK_K):
            if TMA:
                w_tile = w.load([start_n, k])
                x_tile = x.load([start_m, k])
            else:
                columns = k + tl.arange(0, BLOCK_K)
                w_at = w + (n[:, None].to(tl.int64) * stride_w + columns[None, :])
                x_at = x + (m[:, None].to(tl.int64) * stride_x + columns[None, :])
                k_mask = (columns < K)[None, :]
                w_tile = tl.load(w_at, mask=n_mask[:, None] & k_mask, other=0.0)
                x_tile = tl.load(x_at, mask=m_mask[:, None] & k_mask, other=0.0)
            acc = tl.dot(w_tile, x_tile.T, acc, input_precision=PRECISION, out_dtype=ACC)
        total = acc.to(tl.float32)
        if SCALED:
            total = total * tl.load(w_scale + n, mask=n_mask, other=0.0)[:, None]
            total = total * tl.load(x_scale + m, mask=m_mask, other=0.0)[None, :]
        if HAS_BIAS:
            total += tl.load(bias + n, mask=n_mask, other=0.0)[:, None]
        out_at = out + (m[None, :].to(tl.int64) * stride_out + n[:, None])
        tl.store(out_at, total.to(out.dtype.element_ty), mask=n_mask[:, None] & m_mask[None, :])


@dataclass(frozen=True)
class Tile:
    """Outputs of a program: block_n of the weight's rows for block_m rows of x. Stages are steps along K under way."""

    block_n: int
    block_m: int
    num_warps: int
    stages: int

    @property
    def shared_bytes(self) -> int:
        return (self.block_n + self.block_m) * _STEP_BYTES * self.stages


#: For sm_90; the accumulators of the last are half of a thread's registers.
_WGMMA_TILES: Final = (
    Tile(64, 16, 4, 8),
    Tile(64, 32, 4, 7),
    Tile(64, 64, 4, 6),
    Tile(64, 128, 4, 4),
    Tile(128, 128, 8, 4),
    Tile(128, 256, 8, 4),
)
#: For sm_80: its tensor cores take their operands from registers too.
_MMA_TILES: Final = (
    Tile(64, 16, 4, 6),
    Tile(64, 32, 4, 6),
    Tile(64, 64, 4, 4),
    Tile(128, 64, 4, 4),
    Tile(128, 128, 8, 4),
)
_FLOAT32_TILE: Final = Tile(64, 32, 4, 2)

#: What a multiprocessor does in a cycle, from the data sheet of the H100 and what is usually reached of it: products of
#: bfloat16; bytes that it takes from L2; bytes that all take from L2 and from memory together. Only proportions matter.
_PRODUCTS: Final = 1700
_BYTES: Final = 56
_L2_BYTES: Final = 4500
_MEMORY_BYTES: Final = 1750
#: Cycles that storing a tile takes, for each of its outputs.
_STORE: Final = 0.1


def _cycles(tile: Tile, num_rows: int, n: int, steps: int, num_sms: int) -> float:
    """About how long a product takes in these tiles: as long as what is busiest."""
    tiles: int = triton.cdiv(n, tile.block_n) * triton.cdiv(num_rows, tile.block_m)
    turns: int = triton.cdiv(tiles, num_sms)
    step_bytes = (tile.block_n + min(tile.block_m, num_rows)) * _STEP_BYTES
    outputs = tile.block_n * tile.block_m
    busiest: float = max(
        turns * steps * outputs * _STEP_BYTES / 2 / _PRODUCTS,
        turns * steps * step_bytes / _BYTES,
        tiles * steps * step_bytes / _L2_BYTES,
        n * steps * _STEP_BYTES / _MEMORY_BYTES,
    )
    return busiest + turns * outputs * _STORE


@functools.lru_cache(maxsize=4096)
def choose_tile(num_rows: int, n: int, row_bytes: int, the_chip: Chip) -> Tile:
    """The fastest tile for an [num_rows, n] product of rows of `row_bytes` bytes."""
    steps = triton.cdiv(row_bytes, _STEP_BYTES)
    tiles = _WGMMA_TILES if the_chip.has_tma else _MMA_TILES
    return min(tiles, key=lambda tile: _cycles(tile, num_rows, n, steps, the_chip.num_sms))


def multiply_tiles(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scales: tuple[Tensor, Tensor] | None = None,
    tile: Tile | None = None,
    use_tma: bool | None = None,
) -> None:
    """out [M, N] = x [M, K] @ w [N, K].T + bias: see the module. A row's bits depend on that row of x alone.

    x and w have one type: bfloat16, float16, float32; or float8 or int8 with scales, float32: of x's rows [M] and of
    w's [N]. `tile` and `use_tma` are chosen where they are not given.
    """
    num_rows, k = x.shape
    n = len(w)
    the_chip = chip(x.device)
    if x.dtype == _FLOAT32:
        tile, use_tma = _FLOAT32_TILE, False
    tile = tile or choose_tile(num_rows, n, k * x.element_size(), the_chip)
    if use_tma is None:
        use_tma = the_chip.has_tma and is_aligned(x) and is_aligned(w)
    block_k = 32 if x.dtype == _FLOAT32 else _STEP_BYTES // x.element_size()
    x_scale, w_scale = scales if scales is not None else (None, None)
    programs = the_chip.num_sms * max(1, _SHARED_BYTES // tile.shared_bytes)
    tiles = triton.cdiv(n, tile.block_n) * triton.cdiv(num_rows, tile.block_m)
    _tiles_kernel[(min(tiles, programs),)](
        out, TensorDescriptor.from_tensor(x, [tile.block_m, block_k]) if use_tma else x,
        TensorDescriptor.from_tensor(w, [tile.block_n, block_k]) if use_tma else w,
        bias, x_scale, w_scale, num_rows, n, k, out.stride(0), x.stride(0), w.stride(0),
        tile.block_n, tile.block_m, block_k, _GROUP, use_tma, bias is not None, scales is not None,
        tl.int32 if x.dtype == torch.int8 else tl.float32, "ieee" if x.dtype == _FLOAT32 else "tf32",
        num_warps=tile.num_warps, num_stages=tile.stages,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class InvariantLinear:
    """A [N, K] matrix of the activations' type; `weight` may have more columns, zeros, to fill 16 bytes."""

    weight: Tensor
    bias: Bias | None
    K: int

    @property
    def N(self) -> int:
        return self.weight.shape[0]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    @property
    def kind(self) -> str:
        return str(self.weight.dtype).removeprefix("torch.")

    def multiply(self, out: Tensor, x: Tensor) -> None:
        padding = self.weight.shape[1] - self.K
        x = F.pad(x, (0, padding)) if padding else x
        multiply_tiles(out, x, self.weight, None if self.bias is None else self.bias.exact)


def padded_columns(weight: Tensor) -> Tensor:
    """`weight`, or a copy of it whose rows are whole numbers of 16 bytes, as the hardware's copies want them."""
    step = 16 // weight.element_size()
    padding = -weight.shape[1] % step
    return F.pad(weight, (0, padding)) if padding else weight


def _variant(name: str, tile: Tile, dtype: torch.dtype, use_tma: bool, out: torch.dtype = torch.bfloat16) -> Variant:
    block_k = 32 if dtype == _FLOAT32 else _STEP_BYTES // dtype.itemsize
    type_name = TYPE_NAMES[dtype]
    signature = dict.fromkeys(("M", "N", "K", "stride_out", "stride_x", "stride_w"), "i32")
    signature |= {"out": f"*{TYPE_NAMES[out]}", "x": f"*{type_name}", "w": f"*{type_name}"}
    if use_tma:
        signature["x"] = f"tensordesc<{type_name}[{tile.block_m}, {block_k}]>"
        signature["w"] = f"tensordesc<{type_name}[{tile.block_n}, {block_k}]>"
    scaled = dtype.itemsize == 1
    constexprs: dict[str, Any] = {
        "BLOCK_N": tile.block_n, "BLOCK_M": tile.block_m, "BLOCK_K": block_k, "GROUP": _GROUP, "TMA": use_tma,
        "HAS_BIAS": False, "bias": None, "SCALED": scaled, "ACC": tl.int32 if dtype == torch.int8 else tl.float32,
        "PRECISION": "ieee" if dtype == _FLOAT32 else "tf32",
    }  # fmt: skip
    scales = ("x_scale", "w_scale")
    if scaled:
        signature |= dict.fromkeys(scales, "*fp32")
    else:
        constexprs |= dict.fromkeys(scales)
    pointers = ("out", "N", "K", "stride_out", "stride_x", "stride_w", *(scales if scaled else ()))
    return Variant(
        name=f"{name} {type_name} {tile.block_n} x {tile.block_m}{', TMA' if use_tma else ''}",
        kernel=_tiles_kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=tile.num_warps,
        num_stages=tile.stages,
        divisible=frozenset(pointers if use_tma else (*pointers, "x", "w")),
        min_capability=90 if use_tma or dtype == torch.float8_e4m3fn else 80,
    )


def variants() -> Sequence[Variant]:
    """Every tile of bfloat16, and those that two models' matrices lead to in the other types."""
    hopper, ampere = Chip(132, (9, 0)), Chip(108, (8, 0))
    result = [_variant("tiles", tile, torch.bfloat16, True) for tile in _WGMMA_TILES]
    result += [_variant("tiles", tile, torch.bfloat16, False) for tile in _MMA_TILES]
    for dtype in (torch.int8, torch.float8_e4m3fn):
        for the_chip in (hopper, ampere) if dtype == torch.int8 else (hopper,):
            used = {choose_tile(num_rows, n, k, the_chip) for num_rows in (17, 256, 4096) for n, k in SHAPES.values()}
            result += [_variant("tiles", tile, dtype, the_chip.has_tma) for tile in sorted(used, key=str)]
    result.append(_variant("logits,", _WGMMA_TILES[0], torch.float16, True, torch.float32))
    return [*result, _variant("tiles", _FLOAT32_TILE, _FLOAT32, False, _FLOAT32)]
