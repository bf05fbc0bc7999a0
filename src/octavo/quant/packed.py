"""The one form that all integer weights take between the checkpoint and the device's own packing.

    w[n, k] = scales[n, k // g] * (u[n, k] - zero)                  symmetric: mins is None
    w[n, k] = scales[n, k // g] * u[n, k] + mins[n, k // g]         asymmetric

with u unsigned and below 2**bits, and g = group_size consecutive values along K. Scales and mins keep float16
where the checkpoint's are exact in it, and are float32 otherwise: nothing is lost on the way here. Where a float32
scale is made of a float16 factor and a small integer, as in GGUF's K formats, `levels` tells both beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

BITS: Final = (4, 5, 6, 8)
SCALE_DTYPES: Final = (torch.float16, torch.float32)
#: Values along K that share a factor where scales have two levels.
SUPER_GROUP: Final = 256


@dataclass(frozen=True, eq=False)
class ScaleLevels:
    """What float32 scales or mins are products of: scales[n, i] = factors[n, i * group_size // 256] * steps[n, i]."""

    factors: Tensor  # float16 [N, K / 256]
    steps: Tensor  # int8 [N, K / group_size]

    def product(self) -> Tensor:
        """The scales, float32 [N, K / group_size]."""
        rows, supers = self.factors.shape
        steps = self.steps.view(rows, supers, -1)
        return (self.factors.to(torch.float32).unsqueeze(-1) * steps).view(self.steps.shape)

    def select_rows(self, rows: Tensor) -> ScaleLevels:
        """The levels whose row i is these ones' row rows[i] (int64 [M])."""
        return ScaleLevels(self.factors[rows], self.steps[rows])


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """An [N, K] matrix in groups along K. Tensors are contiguous, on the CPU, and not to be written to.

    That all values are below 2**bits is the promise of who makes one; the shapes are checked here.
    """

    values: Tensor  # uint8 [N, K], one value a byte
    bits: int  # 4, 5, 6 or 8: u < 2**bits
    group_size: int  # values along K that share a scale
    scales: Tensor  # float16 or float32 [N, K / group_size]
    mins: Tensor | None = None  # like scales, or None
    zero: int = 0  # meant only if mins is None
    levels: tuple[ScaleLevels, ScaleLevels | None] | None = None  # whose products scales and mins are

    def __post_init__(self) -> None:
        if self.values.dtype != torch.uint8 or self.values.dim() != 2:
            raise ValueError(f"values must be uint8 [N, K], not {self.values.dtype} {tuple(self.values.shape)}")
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {BITS}, not {self.bits}")
        rows, columns = self.values.shape
        if self.group_size <= 0 or columns % self.group_size:
            raise ValueError(f"rows of {columns} values do not divide into groups of {self.group_size}")
        groups = (rows, columns // self.group_size)
        if tuple(self.scales.shape) != groups or self.scales.dtype not in SCALE_DTYPES:
            raise ValueError(f"scales must be float16 or float32 {groups}")
        if self.mins is not None and (self.mins.shape != self.scales.shape or self.mins.dtype != self.scales.dtype):
            raise ValueError("mins must have the shape and type of scales")
        if self.mins is None and not 0 <= self.zero < 2**self.bits:
            raise ValueError(f"zero {self.zero} is not below 2**{self.bits}")
        if self.levels is not None:
            self._check_levels(self.levels)

    def _check_levels(self, levels: tuple[ScaleLevels, ScaleLevels | None]) -> None:
        rows, columns = self.values.shape
        if columns % SUPER_GROUP or SUPER_GROUP % self.group_size or (levels[1] is None) != (self.mins is None):
            raise ValueError(f"two levels are of scales, and of mins if there are any, in {SUPER_GROUP} values")
        for level in levels:
            if level is None:
                continue
            if tuple(level.factors.shape) != (rows, columns // SUPER_GROUP) or level.factors.dtype != torch.float16:
                raise ValueError(f"factors must be float16 {(rows, columns // SUPER_GROUP)}")
            if level.steps.shape != self.scales.shape or level.steps.dtype != torch.int8:
                raise ValueError(f"steps must be int8 {tuple(self.scales.shape)}")

    @property
    def shape(self) -> torch.Size:
        """[N, K]."""
        return self.values.shape

    @property
    def num_rows(self) -> int:
        return self.values.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held in this form (a value takes a whole byte; the device's packing is smaller)."""
        scales = self.scales.nbytes * (1 if self.mins is None else 2)
        return self.values.nbytes + scales

    def dequantize(self) -> Tensor:
        """The weight as float32 [N, K]. Product and sum are rounded apart, as the checkpoint formats define it."""
        rows, columns = self.shape
        grouped = self.values.view(rows, -1, self.group_size).to(torch.float32)
        scales = self.scales.to(torch.float32).unsqueeze(-1)
        if self.mins is None:
            grouped.sub_(self.zero).mul_(scales)
        else:
            grouped.mul_(scales).add_(self.mins.to(torch.float32).unsqueeze(-1))
        return grouped.view(rows, columns)

    def select_rows(self, rows: Tensor) -> QuantizedWeight:
        """The weight whose row i is this one's row rows[i] (int64 [M])."""
        mins = None if self.mins is None else self.mins[rows]
        levels = None
        if self.levels is not None:
            of_scales, of_mins = self.levels
            levels = (of_scales.select_rows(rows), None if of_mins is None else of_mins.select_rows(rows))
        return QuantizedWeight(
            self.values[rows], self.bits, self.group_size, self.scales[rows], mins, self.zero, levels
        )

    def is_finite(self) -> bool:
        """Whether no scale and no min is NaN or infinite; then no weight is."""
        return all_finite(self.scales) and (self.mins is None or all_finite(self.mins))


def all_finite(values: Tensor) -> bool:
    """Whether a float tensor holds no NaN and no infinity. One read; a sum carries either to its end."""
    total = values.sum(dtype=torch.float64 if values.dtype == torch.float64 else torch.float32)
    # A finite tensor may overflow its sum, so that only the exact test may say no.
    return bool(torch.isfinite(total)) or bool(torch.isfinite(values).all())
