"""Unquantized matrices: our own kernel for few rows, cuBLAS for more.

With few rows a product is a read of the weights, and what counts is how many bytes are on their way to each
multiprocessor at any time. Roles are swapped: 16 rows of the weight are the tall operand of the tensor cores' product
and the rows of x its narrow one, so that one row of x wastes nothing. The warps of a block share K and not N: small
matrices fill the GPU without partial sums through memory, and the sum's order depends on K alone.

Such a product can take the norm of its input with it: it multiplies x by the norm's weight, sums the squares of x on
the way, and divides the product by their root. Each program does so for itself. Rounded is then x times the weight, not
the norm: as precise, but other bits than those of a norm by itself. And it can add its result to a residual, each
element of which is one program's.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

import triton
from octavo.ops.triton.elementwise import activated
from octavo.ops.triton.launching import jit, wait_turn
from octavo.ops.triton.linear_chip import chip
from octavo.ops.triton.variants import TYPE_NAMES, Variant

#: Rows of x that the kernels for few rows take.
FEW_ROWS: Final = 16
#: Rows of x that they make room for, at least: Triton 3.6 mixes up the sums of several slices if there is one alone.
LEAST_ROWS: Final = 2
#: Warps of a block; each has one of the slices of K that are in hand at a time.
WARPS: Final = 4
#: All stages of a block, of which all but one are in shared memory: three blocks fit a multiprocessor of an H100, two
#: one of an A100, and the loads of 50 to 75 KB are on their way in each.
_STAGE_BUDGET: Final = 96 << 10
_SHARED_BUDGET: Final = 75 << 10
_MOST_STAGES: Final = 6
#: Tensor cores take these as they are; products of float32 are cuBLAS's.
HALF_TYPES: Final = (torch.bfloat16, torch.float16)


@triton.jit
def weight_rows(N, BLOCK_N: tl.constexpr, ACT: tl.constexpr):
    """Which rows of the weight a program reads, and whether they exist; with ACT half of them are N rows further."""
    i = tl.arange(0, BLOCK_N)
    if ACT == "":
        row = tl.program_id(0) * BLOCK_N + i
        return row, row < N
    row = tl.program_id(0) * (BLOCK_N // 2) + i % (BLOCK_N // 2)
    return row + i // (BLOCK_N // 2) * N, row < N


@triton.jit
def store_rows(
    out, total, M, N, stride_out, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, ACT: tl.constexpr, ADDS: tl.constexpr
):
    """Store `total` float32 [BLOCK_N, BLOCK_M], of the rows of `weight_rows`; with ACT as act(gate) * up; ADDS: to what
    is there."""
    OUTPUTS: tl.constexpr = BLOCK_N if ACT == "" else BLOCK_N // 2
    if ACT != "":
        halves = tl.reshape(total, (2, OUTPUTS, BLOCK_M))
        is_gate = (tl.arange(0, 2) == 0)[:, None, None]
        total = activated(tl.sum(tl.where(is_gate, halves, 0.0), 0), tl.sum(tl.where(is_gate, 0.0, halves), 0), ACT)
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    m = tl.arange(0, BLOCK_M)
    out_at = out + (m[None, :] * stride_out + n[:, None])
    mask = (n < N)[:, None] & (m < M)[None, :]
    if ADDS:
        total += tl.load(out_at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_at, total.to(out.dtype.element_ty), mask=mask)


@jit(do_not_specialize=["M"], chained=True)
def _few_rows_kernel(
    out, x, w, bias, x_scale, w_scale, norm, eps, M, N, K, stride_out, stride_x, stride_w,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, SLICES: tl.constexpr, SLICE: tl.constexpr, EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr, SCALED: tl.constexpr, ACC: tl.constexpr, ACT: tl.constexpr, ADDS: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """out [M, N] = x [M, K] @ w [N, K].T; with ACT, w is [2 N, K] and out = act(x @ w[:N].T) * (x @ w[N:].T).

    norm float32 [K]: the norm of x with these weights is in its place. ADDS: to what out has.
    One program takes BLOCK_N rows of the weight and all of x. Slice s of a step is its columns s * SLICE and following.
    """
    wait_turn(CHAINED)
    row, row_mask = weight_rows(N, BLOCK_N, ACT)
    m = tl.arange(0, BLOCK_M)
    k = tl.arange(0, SLICES) * SLICE
    inner = tl.arange(0, SLICE)
    k_w = k[:, None, None] + inner[None, None, :]
    k_x = k[:, None, None] + inner[None, :, None]
    w_at = w + (row[None, :, None].to(tl.int64) * stride_w + k_w)
    x_at = x + (m[None, None, :] * stride_x + k_x)
    acc = tl.zeros((SLICES, BLOCK_N, BLOCK_M), ACC)
    if norm is not None:
        norm_at = norm + k_x
        squares = tl.zeros((SLICES, SLICE, BLOCK_M), tl.float32)
    for start in range(0, K, SLICES * SLICE):
        w_mask, x_mask = row_mask[None, :, None], (m < M)[None, None, :]
        if not EVEN_K:
            w_mask, x_mask = w_mask & (k_w < K - start), x_mask & (k_x < K - start)
        w_tile = tl.load(w_at, mask=w_mask, other=0.0)
        x_tile = tl.load(x_at, mask=x_mask, other=0.0)
        if norm is not None:
            plain = x_tile.to(tl.float32)
            squares += plain * plain
            weight = tl.load(norm_at) if EVEN_K else tl.load(norm_at, mask=k_x < K - start, other=0.0)
            x_tile = (plain * weight).to(x.dtype.element_ty)
            norm_at += SLICES * SLICE
        acc = tl.dot(w_tile, x_tile, acc, out_dtype=ACC)
        w_at += SLICES * SLICE
        x_at += SLICES * SLICE
    total = tl.sum(acc, 0).to(tl.float32)
    if norm is not None:
        total = total * tl.rsqrt(tl.sum(tl.sum(squares, 1), 0) / K + eps)[None, :]
    if SCALED:
        total = total * tl.load(w_scale + row, mask=row_mask, other=0.0)[:, None]
        total = total * tl.load(x_scale + m, mask=m < M, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + row, mask=row_mask, other=0.0)[:, None]
    store_rows(out, total, M, N, stride_out, BLOCK_N, BLOCK_M, ACT, ADDS)


@dataclass(frozen=True, slots=True)
class InputNorm:
    """The norm of a product's input, by the root of the mean square."""

    weight: Tensor | None  # float32 [K]
    eps: float


NO_NORM: Final = InputNorm(None, 0.0)


@dataclass(frozen=True)
class FewRowsTile:
    """What one program of the kernel takes, and how."""

    block_n: int
    block_m: int
    slice_k: int
    stages: int


@functools.lru_cache(maxsize=4096)
def few_rows_tile(
    num_rows: int, n: int, item_size: int, num_sms: int, least_n: int = 16, has_norm: bool = False
) -> FewRowsTile:
    """The tile for up to 16 rows and n rows of weights of 1 or 2 bytes, of which a program takes at least `least_n`."""
    block_m = max(LEAST_ROWS, triton.next_power_of_2(num_rows))
    block_n = least_n
    # Each block reads all of x from L2, which gives about twice what the memory does: at 16 rows of 16 outputs that
    # would double the traffic. Wider blocks share it, as long as they still fill half of the multiprocessors.
    while block_n < 64 and 2 * num_rows > block_n and n // (4 * block_n) >= num_sms // 2:
        block_n *= 2
    slice_bytes = 256
    rows = block_n + block_m + (2 if has_norm else 0)  # the norm's weights are float32
    while slice_bytes > 64 and 4 * WARPS * slice_bytes * rows > _STAGE_BUDGET:
        slice_bytes //= 2
    stage_bytes = WARPS * slice_bytes * rows
    stages = min(_STAGE_BUDGET // stage_bytes, 1 + _SHARED_BUDGET // stage_bytes, _MOST_STAGES)
    return FewRowsTile(block_n, block_m, slice_bytes // item_size, stages)


def few_rows(
    out: Tensor,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scales: tuple[Tensor, Tensor] | None = None,
    act: str = "",
    norm: InputNorm | None = None,
    adds: bool = False,
) -> None:
    """out [M, N] = x [M, K] @ w [N, K].T + bias by our kernel, M <= 16; K a multiple of 16.

    x and w are both bfloat16, both float16, both float8 or both int8; these two with scales, float32: of x's rows [M]
    and of w's [N]. act: w is [2 N, K], gate over up, and out = act(gate) * up. norm: it is x's norm that is multiplied.
    adds: to what out has.
    """
    num_rows, k = x.shape
    n = out.shape[1]
    least_n = 32 if act else 16
    tile = few_rows_tile(num_rows, len(w), x.element_size(), chip(x.device).num_sms, least_n, norm is not None)
    x_scale, w_scale = scales if scales is not None else (None, None)
    norm = norm or NO_NORM
    _few_rows_kernel[(triton.cdiv(len(w), tile.block_n),)](
        out, x, w, bias, x_scale, w_scale, norm.weight, norm.eps, num_rows, n, k,
        out.stride(0), x.stride(0), w.stride(0),
        tile.block_n, tile.block_m, WARPS, tile.slice_k, k % (WARPS * tile.slice_k) == 0,
        bias is not None, scales is not None, tl.int32 if x.dtype == torch.int8 else tl.float32, act, adds,
        num_warps=WARPS, num_stages=tile.stages,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Bias:
    """[N], as it is and rounded to the activations' type, which cuBLAS wants to add it in its own kernel."""

    exact: Tensor  # float32
    rounded: Tensor

    def part(self, first: int, last: int) -> Bias:
        """The bias of outputs first .. last."""
        return Bias(self.exact[first:last], self.rounded[first:last])


def by_library(out: Tensor, x: Tensor, w: Tensor, bias: Bias | None) -> None:
    """out [M, N] = x [M, K] @ w [N, K].T + bias by cuBLAS, straight into out. x and w have one type."""
    if out.dtype == x.dtype:
        if bias is None:
            torch.mm(x, w.t(), out=out)
        else:
            torch.addmm(bias.rounded, x, w.t(), out=out)
        return
    if x.is_cuda:
        torch.mm(x, w.t(), out_dtype=out.dtype, out=out)
    else:
        # torch's CPU products have no other result than their operands' type.
        torch.mm(x.to(out.dtype), w.t().to(out.dtype), out=out)
    if bias is not None:
        out.add_(bias.exact)


def choose(num_rows: int, k: int, dtype: torch.dtype) -> str:
    """Which of the two multiplies: "few_rows" or "library"."""
    fits = k % 16 == 0 and dtype in HALF_TYPES
    return "few_rows" if num_rows <= FEW_ROWS and fits else "library"


@dataclass(frozen=True, eq=False)
class DenseLinear:
    """A [N, K] matrix of the activations' type, as it is."""

    weight: Tensor
    bias: Bias | None

    @property
    def N(self) -> int:
        return self.weight.shape[0]

    @property
    def K(self) -> int:
        return self.weight.shape[1]

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    @property
    def kind(self) -> str:
        return str(self.weight.dtype).removeprefix("torch.")

    def multiply(self, out: Tensor, x: Tensor) -> None:
        if choose(len(x), self.K, self.weight.dtype) == "few_rows":
            few_rows(out, x, self.weight, None if self.bias is None else self.bias.exact)
        else:
            by_library(out, x, self.weight, self.bias)

    def has_act(self, num_rows: int) -> bool:
        return choose(num_rows, self.K, self.weight.dtype) == "few_rows"

    def multiply_act(self, out: Tensor, x: Tensor, act: str) -> None:
        few_rows(out, x, self.weight, None if self.bias is None else self.bias.exact, act=act)

    def can_join(self, num_rows: int) -> bool:
        return self.weight.dtype == torch.bfloat16 and self.has_act(num_rows)

    def multiply_joined(self, out: Tensor, x: Tensor, norm: InputNorm | None, act: str, adds: bool) -> None:
        bias = None if self.bias is None else self.bias.exact
        few_rows(out, x, self.weight, bias, act=act, norm=norm, adds=adds)


#: Name -> (N, K) of the matrices of two models, N doubled for gate over up.
SHAPES: Final = {
    "0.6B qkv": (4096, 1024), "0.6B o": (1024, 2048), "0.6B gate_up": (6144, 1024), "0.6B down": (1024, 3072),
    "8B qkv": (6144, 4096), "8B o": (4096, 4096), "8B gate_up": (28_672, 4096), "8B down": (4096, 14_336),
}  # fmt: skip
_POINTERS: Final = ("out", "x", "w", "N", "K", "stride_out", "stride_x", "stride_w")


def _variant(
    name: str,
    num_rows: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    act: str = "",
    out: torch.dtype = torch.bfloat16,
    joins: str = "",
    chained: bool = False,
) -> Variant:
    is_scaled = dtype not in HALF_TYPES
    tile = few_rows_tile(num_rows, 2 * n if act else n, dtype.itemsize, 132, 32 if act else 16, joins == "norm")
    integers = ("M", "N", "K", "stride_out", "stride_x", "stride_w")
    signature = dict.fromkeys(integers, "i32") | dict.fromkeys(("x", "w"), f"*{TYPE_NAMES[dtype]}")
    signature["out"] = f"*{TYPE_NAMES[out]}"
    constexprs: dict[str, Any] = {
        "BLOCK_N": tile.block_n, "BLOCK_M": tile.block_m, "SLICES": WARPS, "SLICE": tile.slice_k,
        "EVEN_K": k % (WARPS * tile.slice_k) == 0, "HAS_BIAS": False, "bias": None, "SCALED": is_scaled,
        "ACC": tl.int32 if dtype == torch.int8 else tl.float32, "ACT": act,
        "ADDS": joins == "sum", "CHAINED": chained,
    }  # fmt: skip
    if joins == "norm":
        signature["norm"] = "*fp32"
    else:
        constexprs["norm"] = None
    signature["eps"] = "fp32"
    scales = ("x_scale", "w_scale")
    if is_scaled:
        signature |= dict.fromkeys(scales, "*fp32")
    else:
        constexprs |= dict.fromkeys(scales)
    more = f"{joins and f', with the {joins}'}{', chained' if chained else ''}"
    return Variant(
        name=f"few rows {name}, {num_rows} x {n} x {k}{more}",
        kernel=_few_rows_kernel,
        signature=signature,
        constexprs=constexprs,
        num_warps=WARPS,
        num_stages=tile.stages,
        divisible=frozenset((*_POINTERS, *(scales if is_scaled else ()), *(("norm",) if joins == "norm" else ()))),
        min_capability=90 if dtype == torch.float8_e4m3fn or chained else 80,
    )


def variants() -> Sequence[Variant]:
    """One of each tile that the shapes lead to, and of each type."""
    bf16 = torch.bfloat16
    found: dict[FewRowsTile, Variant] = {}
    for num_rows in (1, 2, 4, 8, 16):
        for name, (n, k) in SHAPES.items():
            tile = few_rows_tile(num_rows, n, 2, 132)
            found.setdefault(tile, _variant(f"bf16 {name}", num_rows, n, k, bf16))
    result = list(found.values())
    for num_rows in (1, 16):
        for name, n, k in (("0.6B", 3072, 1024), ("8B", 14_336, 4096)):
            result.append(_variant(f"bf16 {name} gate_up, act", num_rows, n, k, bf16, act="silu"))
        eights = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
        result.extend(_variant(name, num_rows, 6144, 4096, dtype) for name, dtype in eights.items())
        result.append(_variant("fp16 logits", num_rows, 128_256, 4096, torch.float16, out=torch.float32))
    for num_rows in (1, 2, 4, 8, 16):
        joined = [("0.6B qkv", 4096, 1024, ""), ("8B qkv", 6144, 4096, ""), ("8B gate_up", 14_336, 4096, "silu")]
        result += [_variant(name, num_rows, n, k, bf16, act, joins="norm") for name, n, k, act in joined]
        result += [_variant(name, num_rows, *SHAPES[name], bf16, joins="sum") for name in ("0.6B o", "8B down")]
    result.append(_variant("bf16 8B qkv", 1, *SHAPES["8B qkv"], bf16, joins="norm", chained=True))
    return [*result, _variant("bf16 K tail", 4, 576, 576, bf16)]
