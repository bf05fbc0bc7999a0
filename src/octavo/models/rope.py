"""The cosines and sines that `ops.rope_kv_write` reads.

Frequencies and angles are rounded to float32 at the same places as in the code the models were trained with, so
that a rotation is the same number here and there even far into the context.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.models.spec import RopeSpec


def cos_sin_table(rope: RopeSpec, head_dim: int, num_positions: int) -> Tensor:
    """float32 [num_positions, head_dim]: the cosines of the head_dim / 2 angles, then their sines."""
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inverse_frequencies(rope, head_dim))
    table = torch.empty(num_positions, head_dim)
    torch.cos(angles, out=table[:, : head_dim // 2])
    torch.sin(angles, out=table[:, head_dim // 2 :])
    return table if rope.attention_factor == 1.0 else table.mul_(rope.attention_factor)


def inverse_frequencies(rope: RopeSpec, head_dim: int) -> Tensor:
    """float32 [head_dim / 2]: radians a position."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "linear":
            return plain / rope.factor
        case "factors":
            return plain / torch.tensor(rope.factors, dtype=torch.float32)
        case "llama3":
            return _llama3(rope, plain)
        case "yarn":
            return _yarn(rope, head_dim, rope.theta**exponents)
        case "default":
            return plain


def _llama3(rope: RopeSpec, plain: Tensor) -> Tensor:
    """Short wavelengths stay, long ones are stretched by `factor`, and those between blend from one to the other."""
    original = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / plain
    blend = (original / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * plain / rope.factor + blend * plain
    long = wavelength > original / rope.low_freq_factor
    short = wavelength < original / rope.high_freq_factor
    return torch.where(long, plain / rope.factor, torch.where(short, plain, blended))


def _yarn(rope: RopeSpec, head_dim: int, periods: Tensor) -> Tensor:
    """Dimensions that turn more than `beta_fast` times over the original context stay, those that turn less than
    `beta_slow` times are stretched by `factor`, with a linear ramp over the dimensions between."""

    def dimension(turns: float) -> float:
        ratio = rope.original_max_position_embeddings / (turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    keep = 1 - ramp
    return 1.0 / (rope.factor * periods) * (1 - keep) + 1.0 / periods * keep
