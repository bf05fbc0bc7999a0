"""Tensors that follow from the configuration: the cosines and sines that `ops.rope_kv_write` reads, the slopes of
ALiBi, and others that tell positions.

Frequencies and angles are rounded to float32 at the same places as in the code the models were trained with, so
that a rotation is the same number here and there even far into the context.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from octavo.models.spec import AlibiSpec, ConstantSpec, DerivedSpec, LogQScaleSpec, QScaleSpec, RelativeSpec, RopeSpec


def derived_values(spec: DerivedSpec, shape: tuple[int, ...], num_positions: int) -> Tensor:
    """float32 of the shape with which a model declares it, but for as many positions as there may be."""
    match spec:
        case RopeSpec():
            return cos_sin_table(spec, shape[1], num_positions)
        case AlibiSpec():
            return alibi_slopes(spec)
        case QScaleSpec():
            return q_scales(spec, num_positions)
        case LogQScaleSpec():
            return log_q_scales(spec, num_positions)
        case ConstantSpec():
            return torch.tensor(spec.values).expand(shape).contiguous()


def cos_sin_table(rope: RopeSpec, head_dim: int, num_positions: int) -> Tensor:
    """float32 [num_positions, head_dim]: the cosines of the head_dim / 2 angles, then their sines. Pairs that are not
    rotated are the last, at an angle of 0."""
    half, rotated = head_dim // 2, (rope.rotary_dim or head_dim) // 2
    num_axes = sum(map(bool, rope.sections)) if rope.is_axial else 1
    if num_axes > 1 and rope.takes_turns:
        frequencies = inverse_frequencies(rope, 2 * rotated, num_positions).view(-1, num_axes).t().flatten()
    else:
        frequencies = inverse_frequencies(rope, 2 * rotated // num_axes, num_positions).repeat(num_axes)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    table = torch.zeros(num_positions, head_dim)
    table[:, rotated:half] = 1.0
    cos, sin = table[:, :rotated], table[:, half : half + rotated]
    torch.cos(angles, out=cos)
    torch.sin(angles, out=sin)
    if rope.attention_factor != 1.0:
        cos.mul_(rope.attention_factor)
        sin.mul_(rope.attention_factor)
    return table


def relative_buckets(relative: RelativeSpec) -> tuple[int, ...]:
    """Which of the numbers a key has at the distances -max_distance .. max_distance behind the query."""
    half = relative.num_buckets // 2
    exact = half // 2
    distances = torch.arange(-relative.max_distance, relative.max_distance + 1)
    far = distances.abs().clamp(min=1)
    steps = torch.log(far.float() / exact) / math.log(relative.max_distance / exact) * (half - exact)
    large = (exact + steps.to(torch.long)).clamp(max=half - 1)
    buckets = torch.where(far < exact, distances.abs(), large) + half * (distances > 0)
    return tuple(buckets.tolist())


def alibi_slopes(alibi: AlibiSpec) -> Tensor:
    """float32 [num_heads]. For a number of heads that is no power of two, the rest are every other one of the series
    for twice as many."""
    power = 1 << (alibi.num_heads.bit_length() - 1)
    slopes = [2.0 ** (-alibi.max_bias * (i + 1) / power) for i in range(power)]
    between = [2.0 ** (-alibi.max_bias * (i + 1) / (2 * power)) for i in range(0, 2 * power, 2)]
    return torch.tensor((slopes + between)[: alibi.num_heads]) * alibi.scale


def q_scales(scale: QScaleSpec, num_positions: int) -> Tensor:
    """float32 [num_positions, 1]."""
    positions = torch.arange(scale.offset, scale.offset + num_positions, dtype=torch.float32)
    return 1 + scale.beta * torch.log(1 + torch.floor(positions / scale.original_max_position_embeddings))[:, None]


def log_q_scales(scale: LogQScaleSpec, num_positions: int) -> Tensor:
    """float32 [num_positions, 1]."""
    base = scale.original_max_position_embeddings
    counts = range(1, num_positions + 1)
    return torch.tensor([[math.log(count, base) if count > base else 1.0] for count in counts])


def inverse_frequencies(rope: RopeSpec, head_dim: int, num_positions: int = 0) -> Tensor:
    """float32 [head_dim / 2]: radians a position.

    `num_positions`: the longest context that is served. longrope, dynamic and steps go by it, where other code goes
    by the length that a text has just reached: keys that are cached are rotated already, and a text must not depend on
    where it was cut into steps or on whose prefix it shares.
    """
    original = rope.original_max_position_embeddings
    is_long = num_positions > original
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).to(torch.float32) / head_dim
    plain = 1.0 / (rope.theta**exponents)
    match rope.kind:
        case "linear":
            return plain / rope.factor
        case "dynamic":
            stretch = max(1.0, rope.factor * num_positions / original - (rope.factor - 1))
            theta = rope.theta * math.pow(stretch, head_dim / max(1, head_dim - 2))
            return 1.0 / (theta**exponents)
        case "steps":  # by 1 up to the original context, 3 up to twice as much, 7 up to four times as much
            alpha: int = 2 ** math.ceil(math.log2(max(num_positions, original) / original) + 1) - 1
            theta = rope.theta * math.pow(alpha, head_dim / max(1, head_dim - 2))
            return 1.0 / (theta**exponents)
        case "factors":
            return plain / torch.tensor(rope.factors, dtype=torch.float32)
        case "longrope":
            factors = torch.tensor(rope.long_factors if is_long else rope.factors, dtype=torch.float32)
            return 1.0 / (factors * rope.theta**exponents)
        case "proportional":
            turning = torch.arange(head_dim // 2) < int(rope.share * head_dim // 2)
            return plain / rope.factor * turning
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
    if rope.high_freq_factor == rope.low_freq_factor:  # nothing is between
        return torch.where(wavelength > original / rope.low_freq_factor, plain / rope.factor, plain)
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
