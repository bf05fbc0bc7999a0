"""The one form that all quantized weights take between the checkpoint and the device's own packing.

    w[n, k] = scales[n, k // g] * (u[n, k] - zero)                  symmetric: mins is None
    w[n, k] = scales[n, k // g] * u[n, k] + mins[n, k // g]         asymmetric
    w[n, k] = scales[n, k // g] * table[u[n, k]]                    values that are no integers: float8, nf4

with u unsigned and below 2**bits, and g = group_size consecutive values along K. Scales and mins keep float16
where the checkpoint's are exact in it, and are float32 otherwise: nothing is lost on the way here. Where they are
products of a float16 factor and a small integer, as in GGUF's K formats, they stay in these two levels. The values may
stay in the blocks of their file until a device packs them.

Columns may stand in another order than the matrix's, so that those that share a scale stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from octavo.base.native import has_native_cpu
from octavo.quant.block_format import BlockFormat

BITS: Final = (4, 5, 6, 8)
SCALE_DTYPES: Final = (torch.float16, torch.float32)
#: Values along K that share a factor where scales have two levels.
SUPER_GROUP: Final = 256
#: What the codes of float8 e4m3 stand for, two NaNs among them: the table of weights that are stored so.
E4M3_VALUES: Final = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)


@dataclass(frozen=True, eq=False)
class ScaleLevels:
    """Scales or mins in two levels: scales[n, i] = factors[n, i * group_size // 256] * steps[n, i], in float32."""

    factors: Tensor  # float16 [N, K / 256]
    steps: Tensor  # int8 [N, K / group_size]

    @property
    def shape(self) -> torch.Size:
        """[N, K / group_size]."""
        return self.steps.shape

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return torch.float32

    def product(self) -> Tensor:
        """The scales, float32 [N, K / group_size]."""
        rows, supers = self.factors.shape
        steps = self.steps.view(rows, supers, -1)
        return (self.factors.to(torch.float32).unsqueeze(-1) * steps).view(self.steps.shape)


Scales = Tensor | ScaleLevels


def exact_scales(scales: Tensor) -> Tensor:
    """The scales as float16 if they are exact in it, else as float32."""
    half = scales.to(torch.float16)
    return (half if torch.equal(half.to(torch.float32), scales.to(torch.float32)) else scales.float()).contiguous()


def multiplied(scales: Scales) -> Tensor:
    """Scales or mins as one tensor: float16 or float32, [N, K / group_size]."""
    return scales.product() if isinstance(scales, ScaleLevels) else scales


@dataclass(frozen=True, eq=False)
class FileValues:
    """Values [N, K] in the blocks of their file."""

    data: Tensor  # uint8 [rows of the file, bytes of a row]
    format: BlockFormat
    columns: int  # K
    rows: Tensor | None = None  # int64 [N], which of the file's; all of them if None

    def __post_init__(self) -> None:
        if self.data.dim() != 2 or self.data.shape[1] != self.format.row_bytes(self.columns):
            raise ValueError(f"rows of {self.columns} values do not take {tuple(self.data.shape)} bytes")

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return torch.uint8

    @property
    def shape(self) -> torch.Size:
        """[N, K]."""
        return torch.Size((len(self.data if self.rows is None else self.rows), self.columns))

    def __getitem__(self, rows: Tensor) -> FileValues:
        """The rows named, int64 [M]."""
        return FileValues(self.data, self.format, self.columns, rows if self.rows is None else self.rows[rows])

    def unpacked(self) -> Tensor:
        """uint8 [N, K], one value a byte."""
        if not has_native_cpu():
            return self.format.unpack(self.data if self.rows is None else self.data[self.rows])
        values = torch.empty(self.shape, dtype=torch.uint8)
        rows = 0 if self.rows is None else self.rows.data_ptr()
        self.format.native.unpack(values.data_ptr(), self.data.data_ptr(), rows, *self.shape)
        return values


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """An [N, K] matrix in groups along K. Tensors are contiguous, on the CPU, and not to be written to.

    That all values are below 2**bits is the promise of who makes one; the shapes are checked here.
    """

    values: Tensor | FileValues  # uint8 [N, K], one value a byte
    bits: int  # 4, 5, 6 or 8: u < 2**bits
    group_size: int  # values along K that share a scale
    scales: Scales  # [N, K / group_size], float16 or float32 if a tensor
    mins: Scales | None = None  # like scales, or None
    zero: int = 0  # meant only if mins and table are None
    table: Tensor | None = None  # float32 [2**bits] of 4 or 8 bits: what u stands for
    order: Tensor | None = None  # int64 [K]: column j is column order[j] of the matrix

    def __post_init__(self) -> None:
        if self.values.dtype != torch.uint8 or len(self.values.shape) != 2:
            raise ValueError(f"values must be uint8 [N, K], not {self.values.dtype} {tuple(self.values.shape)}")
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")
        columns = self.values.shape[1]
        if self.group_size <= 0 or columns % self.group_size:
            raise ValueError(f"rows of {columns} values do not divide into groups of {self.group_size}")
        self._check_scales(self.scales)
        if self.table is not None:
            self._check_table(self.table)
        if self.order is not None and (self.order.dtype != torch.int64 or tuple(self.order.shape) != (columns,)):
            raise ValueError(f"the order must be int64 [{columns}]")
        if self.mins is not None:
            self._check_scales(self.mins)
            both = (self.scales, self.mins)
            if self.mins.dtype != self.scales.dtype or len({isinstance(part, ScaleLevels) for part in both}) > 1:
                raise ValueError("mins must have the type of scales")
        elif not 0 <= self.zero < 2**self.bits:
            raise ValueError(f"zero {self.zero} is not below 2**{self.bits}")

    def _check_table(self, table: Tensor) -> None:
        if self.bits not in (4, 8) or tuple(table.shape) != (2**self.bits,) or table.dtype != torch.float32:
            raise ValueError(f"a table is float32 [16] or [256], as the {self.bits} bits of the values want it")
        if self.mins is not None or self.zero:
            raise ValueError("values of a table have neither mins nor a zero")

    def _check_scales(self, scales: Scales) -> None:
        rows, columns = self.values.shape
        groups = (rows, columns // self.group_size)
        if isinstance(scales, Tensor):
            if tuple(scales.shape) != groups or scales.dtype not in SCALE_DTYPES:
                raise ValueError(f"scales and mins must be float16 or float32 {groups}")
            return
        if columns % SUPER_GROUP or SUPER_GROUP % self.group_size:
            raise ValueError(f"two levels are of {SUPER_GROUP} values, not of rows of {columns} in {self.group_size}")
        supers = (rows, columns // SUPER_GROUP)
        if tuple(scales.factors.shape) != supers or scales.factors.dtype != torch.float16:
            raise ValueError(f"factors must be float16 {supers}")
        if tuple(scales.steps.shape) != groups or scales.steps.dtype != torch.int8:
            raise ValueError(f"steps must be int8 {groups}")

    @property
    def shape(self) -> torch.Size:
        """[N, K]."""
        return self.values.shape

    @property
    def num_rows(self) -> int:
        return self.values.shape[0]

    def unpacked(self) -> Tensor:
        """The values, uint8 [N, K], one a byte."""
        return self.values.unpacked() if isinstance(self.values, FileValues) else self.values

    def dequantize(self) -> Tensor:
        """The weight as float32 [N, K]. Product and sum are rounded apart, as the checkpoint formats define it."""
        rows, columns = self.shape
        values = self.unpacked()
        floats = values.to(torch.float32) if self.table is None else self.table[values.to(torch.int32)]
        grouped = floats.view(rows, -1, self.group_size)
        scales = multiplied(self.scales).to(torch.float32).unsqueeze(-1)
        if self.mins is not None:
            grouped.mul_(scales).add_(multiplied(self.mins).to(torch.float32).unsqueeze(-1))
        else:
            grouped.sub_(self.zero).mul_(scales)
        if self.order is None:
            return grouped.view(rows, columns)
        weight = torch.empty_like(floats)
        weight[:, self.order] = grouped.view(rows, columns)
        return weight

    def select_rows(self, rows: Tensor) -> QuantizedWeight:
        """The weight whose row i is this one's row rows[i] (int64 [M])."""
        mins = None if self.mins is None else _rows_of(self.mins, rows)
        values, scales = self.values[rows], _rows_of(self.scales, rows)
        return replace(self, values=values, scales=scales, mins=mins)

    def is_finite(self) -> bool:
        """Whether no scale, no min and no value of the table that occurs is NaN or infinite; then no weight is."""
        parts = (self.scales,) if self.mins is None else (self.scales, self.mins)
        scales_are = all(all_finite(part.factors if isinstance(part, ScaleLevels) else part) for part in parts)
        return scales_are and (self.table is None or self._names_finite(self.table))

    def _names_finite(self, table: Tensor) -> bool:
        values = self.unpacked()
        return not any((values == code).any() for code in (~table.isfinite()).nonzero().flatten().tolist())


def as_floats(weight: Tensor | QuantizedWeight) -> Tensor:
    """A weight that is quantized as float32; one that is not as it is."""
    return weight.dequantize() if isinstance(weight, QuantizedWeight) else weight


def scaled(weight: Tensor | QuantizedWeight, scale: float) -> Tensor | QuantizedWeight:
    """The weight times a number: of floats rounded to their type once more, of quantized values the scales' alone."""
    if scale == 1.0:
        return weight
    if isinstance(weight, Tensor):
        return (weight.to(torch.float32) * scale).to(weight.dtype)
    scales, mins = (
        None if each is None else multiplied(each).to(torch.float32) * scale for each in (weight.scales, weight.mins)
    )
    assert scales is not None
    return replace(weight, scales=scales, mins=mins)


def _rows_of(scales: Scales, rows: Tensor) -> Scales:
    if isinstance(scales, ScaleLevels):
        return ScaleLevels(scales.factors[rows], scales.steps[rows])
    return scales[rows]


def all_finite(values: Tensor) -> bool:
    """Whether a float tensor holds no NaN and no infinity. One read; a sum carries either to its end."""
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    # A finite tensor may overflow its sum, so that only the exact test may say no.
    return bool(torch.isfinite(total)) or bool(torch.isfinite(values).all())
