"""Weights of 4 and 8 bits, integers or values of a table, with floating-point activations: how they are packed, and
which kernel multiplies.

Up to 16 rows go to the kernel that reads fastest, more to tiles of tensor cores that take weights from registers. From
`MANY_ROWS` on it pays to write the weights out as floats, a piece at a time, and to let cuBLAS multiply; and so it is
done with float32 activations for any number of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

import triton
from octavo.ops.triton.linear_chip import Chip, chip
from octavo.ops.triton.linear_dense import (
    FEW_ROWS,
    HALF_TYPES,
    LEAST_ROWS,
    NO_NORM,
    SHAPES,
    WARPS,
    Bias,
    InputNorm,
    by_library,
)
from octavo.ops.triton.linear_int_kernels import (
    FLOAT8S,
    int_few_rows_kernel,
    int_rows_kernel,
    int_tiles_kernel,
    sum_kernel,
    unpacking,
    unpacking_table,
)
from octavo.ops.triton.linear_tiles import multiply_tiles
from octavo.ops.triton.variants import TYPE_NAMES, Variant
from octavo.quant.packed import E4M3_VALUES, QuantizedWeight, multiplied

#: Rows of x from which writing the weights out costs less than the tiles lose against cuBLAS: about a tenth of the
#: product at 4096 rows.
MANY_ROWS: Final = 1024
#: Floats that are written out at a time: 64 MB of bfloat16, which keeps cuBLAS busy at the widest K.
_PIECE: Final = 32 << 20
_STAGE_BUDGET: Final = 96 << 10
_MOST_STAGES: Final = 8
#: Rows of x that products take with their norm, and least groups of 4 bits: with more rows or smaller groups, a
#: program's registers leave room for fewer programs.
_JOINED_ROWS: Final = 4
_JOINED_GROUP: Final = 64
_JOINED_STAGES: Final = 6


class Form(NamedTuple):
    """What weights must have in common to be packed as one. `bits` are those of the packing, 4 or 8. `table`: what the
    values stand for, float32; empty: for themselves."""

    bits: int
    group: int
    zero: int
    has_mins: bool
    scale_dtype: torch.dtype
    table: bytes = b""


def form_of(weight: QuantizedWeight) -> Form | None:
    """The form in which the kernels take a weight, whatever the order of its columns; None: its groups or its K do not
    suit them, or its values are those of a table of 256 that is no float8's."""
    table = b"" if weight.table is None else weight.table.numpy().tobytes()
    if weight.group_size % 16 or weight.shape[1] % 64 or (weight.bits == 8 and table and table not in FLOAT8S):
        return None
    bits = 4 if weight.bits == 4 else 8
    has_mins = weight.mins is not None
    return Form(bits, weight.group_size, 0 if has_mins else weight.zero, has_mins, weight.scales.dtype, table)


def tile_of(k: int) -> int:
    """Values of a row that are packed together: see `linear_int_kernels`."""
    return 128 if k % 128 == 0 else 64


def pack_values(values: Tensor, bits: int) -> Tensor:
    """uint8 [N, K] as the kernels read it: of 4 bits [N, K / 2]."""
    if bits == 8:
        return values.contiguous()
    n, k = values.shape
    low, high = values.view(n, k // tile_of(k), 2, -1).unbind(2)
    return low.bitwise_or(high << 4).view(n, k // 2)


def unpack_values(packed: Tensor, k: int, bits: int) -> Tensor:
    """The inverse of `pack_values`."""
    if bits == 8:
        return packed
    half = tile_of(k) // 2
    tiles = packed.view(len(packed), -1, half)
    return torch.stack((tiles & 0xF, tiles >> 4), dim=2).view(len(packed), k)


@dataclass(frozen=True, eq=False)
class IntLinear:
    """A [N, K] matrix of integers, or of a table's values. `is_invariant`: a row's bits must not depend on how many
    others there are."""

    packed: Tensor  # uint8 [N, K] or [N, K / 2]
    scales: Tensor  # float16 or float32 [K / group, N]
    mins: Tensor | None  # like scales
    table: Tensor | None  # float32 [16] or [256]
    bias: Bias | None
    form: Form
    K: int
    is_invariant: bool

    @property
    def N(self) -> int:
        return self.packed.shape[0]

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes * (1 if self.mins is None else 2)

    @property
    def kind(self) -> str:
        if self.form.table:
            return "table4" if self.form.bits == 4 else "float8"
        return f"int{self.form.bits}"

    @property
    def tile(self) -> int:
        return tile_of(self.K)

    @property
    def unit(self) -> int:
        """Most values, up to half a tile, of which every aligned run has one scale."""
        return unit_of(self.form, self.K)

    def multiply(self, out: Tensor, x: Tensor) -> None:
        num_rows = len(x)
        if x.dtype not in HALF_TYPES or (num_rows >= MANY_ROWS and not self.is_invariant):
            self._multiply_by_pieces(out, x)
        elif num_rows <= FEW_ROWS and not self.is_invariant:
            int_few_rows(out, x, self)
        else:
            int_tiles(out, x, self)

    def has_act(self, num_rows: int) -> bool:
        return num_rows <= FEW_ROWS and not self.is_invariant

    def multiply_act(self, out: Tensor, x: Tensor, act: str) -> None:
        int_few_rows(out, x, self, act)

    def can_join(self, num_rows: int) -> bool:
        has_room = self.form.bits == 8 or self.form.group >= _JOINED_GROUP
        return has_room and num_rows <= _JOINED_ROWS and self.has_act(num_rows)

    def multiply_joined(self, out: Tensor, x: Tensor, norm: InputNorm | None, act: str, adds: bool) -> None:
        int_few_rows(out, x, self, act, norm, adds)

    def write_rows(self, out: Tensor, ids: Tensor | None, first: int = 0, factor: float = 1.0) -> None:
        """out [T, K] = factor * rows `ids` int32 [T], or those from `first` on. Any float type."""
        block = 32
        grid = (triton.cdiv(len(out), block), self.K // self.tile)
        int_rows_kernel[grid](
            out, ids, self.packed, self.scales, self.mins, self.table, first, len(out), self.K, factor, out.stride(0),
            self.packed.stride(0), self.scales.stride(0), self.form.bits, self.form.zero, self.tile,
            # Two scales for a half at least, as in the products.
            min(self.unit, self.tile // 4), self.form.group, block, ids is not None, self.mins is not None,
        )  # fmt: skip

    def _multiply_by_pieces(self, out: Tensor, x: Tensor) -> None:
        piece = _piece(x.device, x.dtype)
        step = max(1, _PIECE // self.K // 256 * 256 or _PIECE // self.K)
        for first in range(0, self.N, step):
            last = min(self.N, first + step)
            weight = piece[: (last - first) * self.K].view(last - first, self.K)
            self.write_rows(weight, None, first)
            bias = None if self.bias is None else self.bias.part(first, last)
            if self.is_invariant:
                multiply_tiles(out[:, first:last], x, weight, None if bias is None else bias.exact)
            else:
                by_library(out[:, first:last], x, weight, bias)


@functools.cache
def _piece(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Memory for weights that are written out; one product uses it at a time, as they follow each other on a device."""
    return torch.empty(_PIECE, dtype=dtype, device=device)


def pack_int(
    weights: Sequence[QuantizedWeight],
    form: Form,
    bias: Bias | None,
    dtype: torch.dtype,
    to_device: Callable[[Tensor], Tensor],
    is_invariant: bool,
) -> IntLinear:
    """Pack weights of one form and one K, stacked along N. `dtype`: of the activations."""
    k = weights[0].shape[1]
    packed: list[Tensor] = []
    scales: list[Tensor] = []
    mins: list[Tensor] = []
    for weight in weights:
        packed.append(pack_values(to_device(weight.unpacked()), form.bits))
        scales.append(to_device(multiplied(weight.scales)).t())
        if weight.mins is not None:
            mins.append(to_device(multiplied(weight.mins)).t())
    result = IntLinear(
        packed[0] if len(packed) == 1 else torch.cat(packed),
        torch.cat(scales, dim=1).contiguous(),
        torch.cat(mins, dim=1).contiguous() if mins else None,
        None if weights[0].table is None else to_device(weights[0].table.contiguous()),
        bias, form, k, is_invariant,
    )  # fmt: skip
    if dtype not in HALF_TYPES or not is_invariant:
        _piece(result.packed.device, dtype)  # now: a captured graph could not allocate what others must find later
    return result


def unit_of(form: Form, k: int) -> int:
    unit = tile_of(k) // 2
    while form.group % unit:
        unit //= 2
    return unit


class FewRowsTile(NamedTuple):
    """What a program of the kernel takes: see there."""

    block_n: int
    block_m: int
    slices: int
    slice_k: int
    stages: int


@functools.lru_cache(maxsize=4096)
def few_rows_tile(
    num_rows: int, n: int, k: int, bits: int, unit: int, num_sms: int, least_n: int = 16, has_norm: bool = False
) -> FewRowsTile:
    """The tile for up to 16 rows; a program takes at least `least_n` rows of the weight."""
    block_m = max(LEAST_ROWS, triton.next_power_of_2(num_rows))
    slice_k = max(32, min(unit, tile_of(k) // 2))  # tensor cores take 32 of what was bytes
    slices = max(WARPS, 256 // slice_k)
    # Twice as many rows of the weight for each read of x, and fewer instructions for each weight; but only as long as
    # programs fill half of the multiprocessors and the sums fit their registers.
    block_n = max(least_n, 32 if n >= 64 * num_sms else 16)
    while (
        2 * num_rows * 16 > block_n * bits
        and n // (4 * block_n) >= num_sms // 2
        and 2 * block_n * block_m * slices <= 2048
    ):
        block_n *= 2
    columns = slices * slice_k * (2 if bits == 4 else 1)
    stage_bytes = slices * slice_k * block_n + 2 * columns * block_m + (4 * columns if has_norm else 0)
    stages = min(_JOINED_STAGES if has_norm else _MOST_STAGES, _STAGE_BUDGET // stage_bytes)
    return FewRowsTile(block_n, block_m, slices, slice_k, max(2, stages))


def int_few_rows(
    out: Tensor, x: Tensor, w: IntLinear, act: str = "", norm: InputNorm | None = None, adds: bool = False
) -> None:
    """out [M, N] = x [M, K] @ w.T + bias, M <= 16; act: w is gate over up, [2 N, K], and out = act(gate) * up. norm: it
    is x's norm that is multiplied. adds: to what out has."""
    num_rows, n = out.shape
    tile = few_rows_tile(
        num_rows, w.N, w.K, w.form.bits, w.unit, chip(x.device).num_sms, 32 if act else 16, norm is not None
    )
    is_even = w.K % (tile.slices * tile.slice_k * (2 if w.form.bits == 4 else 1)) == 0
    norm = norm or NO_NORM
    int_few_rows_kernel[(triton.cdiv(w.N, tile.block_n),)](
        out, x, w.packed, w.scales, w.mins, w.table, None if w.bias is None else w.bias.exact, norm.weight, norm.eps,
        num_rows, n, w.K, out.stride(0), x.stride(0), w.packed.stride(0), w.scales.stride(0),
        w.form.bits, w.form.zero, w.tile if w.form.bits == 4 else tile.slice_k, min(w.unit, tile.slice_k),
        w.form.group, tile.slices, tile.slice_k, tile.block_n, tile.block_m, is_even,
        w.mins is not None, w.bias is not None, _unpacking(w.form, x), act, adds,
        num_warps=WARPS, num_stages=tile.stages,
    )  # fmt: skip


def _unpacking(form: Form, x: Tensor) -> str:
    """The interpreter knows no PTX."""
    return ptx_of(form, x.dtype) if x.is_cuda else ""


def ptx_of(form: Form, dtype: torch.dtype) -> str:
    return unpacking_table(form.table, dtype) if form.table else unpacking(form.bits, form.zero, dtype)


class Tile(NamedTuple):
    """`cycles`: about what a step of 128 columns takes of a multiprocessor, from the count of instructions."""

    block_n: int
    block_m: int
    num_warps: int
    stages: int
    cycles: int


_WGMMA_TILES: Final = (
    Tile(64, 16, 4, 5, 400), Tile(64, 32, 4, 5, 420), Tile(64, 64, 4, 4, 500), Tile(128, 128, 8, 3, 1500)
)  # fmt: skip
_MMA_TILES: Final = (Tile(64, 16, 4, 4, 400), Tile(64, 32, 4, 4, 480), Tile(128, 64, 8, 3, 1300))
_SPLITS: Final = (1, 2, 4, 8)
#: Cycles of a launch, and bytes of sums that are written and read in a cycle.
_LAUNCH: Final = 3000
_SUM_BYTES: Final = 2500


@functools.lru_cache(maxsize=4096)
def choose_tile(num_rows: int, n: int, k: int, is_invariant: bool, the_chip: Chip) -> tuple[Tile, int]:
    """The tile, and between how many programs K is shared: by one where the sum's order must not depend on M."""

    def cycles(choice: tuple[Tile, int]) -> float:
        tile, splits = choice
        programs: int = triton.cdiv(n, tile.block_n) * triton.cdiv(num_rows, tile.block_m) * splits
        steps: int = triton.cdiv(k // tile_of(k), splits)
        sums = 0.0 if splits == 1 else _LAUNCH + 8 * splits * num_rows * n / _SUM_BYTES
        busy: int = triton.cdiv(programs, the_chip.num_sms) * steps * tile.cycles
        return busy + sums

    tiles = _WGMMA_TILES if the_chip.has_tma else _MMA_TILES
    most = 1 if is_invariant else k // tile_of(k)
    return min(((tile, splits) for tile in tiles for splits in _SPLITS if splits <= most), key=cycles)


def int_tiles(out: Tensor, x: Tensor, w: IntLinear, choice: tuple[Tile, int] | None = None) -> None:
    """out [M, N] = x [M, K] @ w.T + bias for any M; where K is not shared, a row's bits depend on that row alone."""
    num_rows, n = out.shape
    tile, splits = choice or choose_tile(num_rows, n, w.K, w.is_invariant, chip(x.device))
    sums = out if splits == 1 else torch.empty(splits, num_rows, n, dtype=torch.float32, device=x.device)
    bias = None if w.bias is None else w.bias.exact
    grid = (triton.cdiv(n, tile.block_n) * triton.cdiv(num_rows, tile.block_m), splits)
    int_tiles_kernel[grid](
        sums, x, w.packed, w.scales, w.mins, w.table, bias if splits == 1 else None, num_rows, n, w.K,
        sums.stride(-2), x.stride(0), w.packed.stride(0), w.scales.stride(0),
        w.form.bits, w.form.zero, w.tile, w.unit, w.form.group, splits, tile.block_n, tile.block_m,
        w.mins is not None, bias is not None and splits == 1, _unpacking(w.form, x),
        num_warps=tile.num_warps, num_stages=tile.stages,
    )  # fmt: skip
    if splits > 1:
        sum_kernel[(num_rows, triton.cdiv(n, _SUM_BLOCK))](
            out, sums, bias, n, out.stride(0), num_rows * n, splits, _SUM_BLOCK, bias is not None
        )


_SUM_BLOCK: Final = 1024
_INTEGERS: Final = ("M", "N", "K", "stride_out", "stride_x", "stride_w", "stride_s")
#: Any table of 16 compiles alike.
_SIXTEEN: Final = torch.linspace(-1, 1, 16).numpy().tobytes()
#: Formats whose packing differs: GPTQ, AWQ, Q4_K, Q8_0 and Q6_K of GGUF, and those of tables.
FORMS: Final = {
    "GPTQ": Form(4, 128, 8, False, torch.float16),
    "AWQ": Form(4, 128, 0, True, torch.float16),
    "Q4_K": Form(4, 32, 0, True, torch.float32),
    "Q8_0": Form(8, 32, 128, False, torch.float16),
    "Q6_K": Form(8, 16, 32, False, torch.float32),
    "nf4": Form(4, 64, 0, False, torch.float32, _SIXTEEN),
    "nvfp4": Form(4, 16, 0, False, torch.float32, _SIXTEEN),
    "float8 of blocks": Form(8, 128, 0, False, torch.float32, E4M3_VALUES.numpy().tobytes()),
    "float8 of rows": Form(8, 4096, 0, False, torch.float32, E4M3_VALUES.numpy().tobytes()),
}


def _variant(name: str, form: Form, k: int, dtype: torch.dtype, kernel: Any, **more: Any) -> Variant:
    signature = dict.fromkeys(_INTEGERS, "i32") | dict.fromkeys(("out", "x"), f"*{TYPE_NAMES[dtype]}")
    signature |= {"w": "*u8", "scales": f"*{TYPE_NAMES[form.scale_dtype]}"}
    constexprs = {
        "BITS": form.bits, "ZERO": form.zero, "TILE": tile_of(k), "UNIT": unit_of(form, k), "GROUP": form.group,
        "HAS_MINS": form.has_mins, "HAS_BIAS": False, "bias": None, "mins": None, "table": None,
        "UNPACK": ptx_of(form, dtype), **more,
    }  # fmt: skip
    if form.has_mins:
        del constexprs["mins"]
        signature["mins"] = signature["scales"]
    return Variant(
        name=name,
        kernel=kernel,
        signature=signature,
        num_warps=constexprs.pop("num_warps"),
        num_stages=constexprs.pop("num_stages"),
        constexprs=constexprs,
        divisible=frozenset(name for name in signature if name != "M"),
        min_capability=constexprs.pop("min_capability", 80),
    )


def _few_rows_variant(
    name: str, num_rows: int, n: int, k: int, dtype: torch.dtype = torch.bfloat16, act: str = "", joins: str = ""
) -> Variant:
    form = FORMS[name]
    tile = few_rows_tile(num_rows, n, k, form.bits, unit_of(form, k), 132, 32 if act else 16, joins == "norm")
    more = {
        "SLICES": tile.slices, "SLICE": tile.slice_k, "BLOCK_N": tile.block_n, "BLOCK_M": tile.block_m,
        "EVEN_K": k % (tile.slices * tile.slice_k * (2 if form.bits == 4 else 1)) == 0, "ACT": act,
        "UNIT": min(unit_of(form, k), tile.slice_k), "num_warps": WARPS, "num_stages": tile.stages,
    }  # fmt: skip
    more |= {"ADDS": joins == "sum", "CHAINED": False, "norm": None, "eps": 0.0}
    if form.bits == 8:
        more["TILE"] = tile.slice_k
    title = f"few rows {name} {TYPE_NAMES[dtype]}, {num_rows} x {n} x {k} {act}{joins and f', with the {joins}'}"
    made = _variant(title, form, k, dtype, int_few_rows_kernel, **more)
    if joins != "norm":
        return made
    signature = {**made.signature, "norm": "*fp32", "eps": "fp32"}
    constexprs = {key: value for key, value in made.constexprs.items() if key not in signature}
    return replace(made, signature=signature, constexprs=constexprs, divisible=made.divisible | {"norm"})


def _tile_variant(name: str, tile: Tile, capability: int, splits: int = 1) -> Variant:
    more = {"SPLITS": splits, "BLOCK_N": tile.block_n, "BLOCK_M": tile.block_m, "num_warps": tile.num_warps}
    title = f"tiles {name} {tile.block_n} x {tile.block_m}, {splits} for K"
    return _variant(
        title, FORMS[name], 4096, torch.bfloat16, int_tiles_kernel, num_stages=tile.stages,
        min_capability=capability, **more,
    )  # fmt: skip


def _rows_variant(name: str) -> Variant:
    form = FORMS[name]
    more = {"UNIT": min(unit_of(form, 4096), 32), "BLOCK_T": 32, "HAS_IDS": False, "ids": None}
    made = _variant(f"rows {name}", form, 4096, torch.bfloat16, int_rows_kernel, num_warps=4, num_stages=1, **more)
    names = int_rows_kernel.arg_names
    signature = {"first": "i32", "T": "i32", "factor": "fp32", **made.signature}
    if form.table:
        signature["table"] = "*fp32"
    return replace(
        made,
        signature={key: value for key, value in signature.items() if key in names},
        constexprs={key: value for key, value in made.constexprs.items() if key in names and key not in signature},
        divisible=made.divisible.intersection(names),
    )


def _sum_variant() -> Variant:
    signature = {"out": "*bf16", "parts": "*fp32", "N": "i32", "stride_out": "i32", "size": "i32"}
    constexprs = {"bias": None, "HAS_BIAS": False, "SPLITS": 4, "BLOCK": _SUM_BLOCK}
    return Variant(name="sum of parts", kernel=sum_kernel, signature=signature, constexprs=constexprs,
                   divisible=frozenset(signature))  # fmt: skip


def variants() -> list[Variant]:
    """Each format's products with one row and with 16, each tile, and the rows as floats."""
    found = [_few_rows_variant(name, num_rows, 6144, 4096) for name in FORMS for num_rows in (1, 4, 16)]
    found += [_few_rows_variant("GPTQ", num_rows, *SHAPES["8B gate_up"], act="silu") for num_rows in (1, 16)]
    joined = [name for name, form in FORMS.items() if form.bits == 8 or form.group >= _JOINED_GROUP]
    found += [_few_rows_variant(name, num_rows, 6144, 4096, joins="norm") for name in joined for num_rows in (1, 4)]
    for num_rows in (1, 4):
        found.append(_few_rows_variant("GPTQ", num_rows, *SHAPES["8B o"], joins="sum"))
        found.append(_few_rows_variant("GPTQ", num_rows, *SHAPES["8B gate_up"], act="silu", joins="norm"))
    found += [_few_rows_variant("GPTQ", 1, *SHAPES[name]) for name in ("0.6B o", "0.6B down", "8B down", "8B gate_up")]
    found += [_few_rows_variant(name, 1, 4096, 4096, torch.float16) for name in ("GPTQ", "Q8_0")]
    found += [_few_rows_variant("Q8_0", 1, 576, 576)]
    for name in FORMS:
        found += [_tile_variant(name, tile, 80) for tile in _MMA_TILES]
        found += [_tile_variant(name, tile, 90) for tile in _WGMMA_TILES]
        found.append(_rows_variant(name))
    found += [_tile_variant("GPTQ", _WGMMA_TILES[1], 90, 4), _tile_variant("GPTQ", _MMA_TILES[1], 80, 4)]
    return [*found, _sum_variant()]
