"""The additive roofline AR and other shares of what a GPU can do, from configurations and lengths alone.

    T_AR = matrix FLOPs / peak + prompt attention FLOPs / peak + KV bytes read / bandwidth + steps * weight bytes /
           bandwidth

A share is T_AR / T_run. Added and not the largest: a program that computes while it reads could beat it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from gpu.shapes import Shape


@dataclass(frozen=True)
class Peaks:
    """Of one GPU: FLOP/s with bf16 and with fp8 factors, and bytes a second between memory and chip."""

    bf16: float
    fp8: float
    bandwidth: float

    def to_json(self) -> dict[str, float]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Peaks | None:
        return None if values is None else cls(**values)


#: Words in a device's name -> its data sheet, dense. The first row that fits counts. A100's fp8 is bf16: it has none.
DATASHEETS: Final[tuple[tuple[tuple[str, ...], Peaks], ...]] = (
    (("h200",), Peaks(989e12, 1979e12, 4.8e12)),
    (("h100", "pcie"), Peaks(756e12, 1513e12, 2.0e12)),
    (("h100", "nvl"), Peaks(835e12, 1671e12, 3.9e12)),
    (("h100",), Peaks(989e12, 1979e12, 3.35e12)),
    (("h800",), Peaks(989e12, 1979e12, 3.35e12)),
    (("a100", "40gb"), Peaks(312e12, 312e12, 1.555e12)),
    (("a100",), Peaks(312e12, 312e12, 2.04e12)),
    (("a800",), Peaks(312e12, 312e12, 2.04e12)),
    (("b200",), Peaks(2250e12, 4500e12, 8.0e12)),
    (("l40s",), Peaks(362e12, 733e12, 0.864e12)),
    (("l4",), Peaks(121e12, 242e12, 0.3e12)),
    (("a10",), Peaks(125e12, 125e12, 0.6e12)),
    (("4090",), Peaks(165e12, 330e12, 1.008e12)),
)


def datasheet(device: str) -> Peaks | None:
    """By the name that the driver gives, such as "NVIDIA H100 80GB HBM3"; None for one that is not known."""
    words = device.lower().replace("-", " ")
    return next((peaks for names, peaks in DATASHEETS if all(name in words for name in names)), None)


@dataclass(frozen=True)
class Lengths:
    """Of one request: tokens of the prompt, sampled tokens, and those of the prompt that were found in the cache."""

    prompt: int
    output: int
    cached: int = 0


@dataclass(frozen=True)
class Precision:
    """Bytes of a weight and of a cached value; whether the matrices multiply in fp8."""

    weight_bytes: float = 2.0
    kv_bytes: float = 2.0
    is_fp8: bool = False


BF16: Final = Precision()


def matrix_flops(shape: Shape, requests: Sequence[Lengths]) -> float:
    """Sums and products of all matrices: each token through the layers, each sampled one through the output matrix."""
    layers = sum(r.prompt - r.cached + r.output for r in requests)
    return 2.0 * (shape.layer_params * layers + shape.head_params * sum(r.output for r in requests))


def prompt_attention_flops(shape: Shape, requests: Sequence[Lengths]) -> float:
    """Causal attention of the prompts. That of decoding is bound by what it reads, which `kv_bytes_read` counts."""
    pairs = sum((r.prompt**2 - r.cached**2) / 2 for r in requests)
    return 4.0 * shape.layers * shape.heads * shape.head_dim * pairs


def kv_bytes_read(shape: Shape, requests: Sequence[Lengths], precision: Precision = BF16) -> float:
    return precision.kv_bytes * shape.kv_values * sum(r.output * r.prompt + r.output**2 / 2 for r in requests)


def concurrency(requests: Sequence[Lengths], max_num_seqs: int, kv_tokens: int | None) -> float:
    """Requests that run at a time: as many as a step takes and as the KV cache (`kv_tokens`) holds half-way."""
    if kv_tokens is None:
        return float(max_num_seqs)
    mean = sum(r.prompt + r.output / 2 for r in requests) / len(requests)
    return min(float(max_num_seqs), max(1.0, kv_tokens / mean))


def num_steps(requests: Sequence[Lengths], at_a_time: float) -> float:
    """As many as the longest reply has tokens; more when not all run at a time."""
    return max(float(max(r.output for r in requests)), sum(r.output for r in requests) / at_a_time)


def ar_seconds(
    shape: Shape, requests: Sequence[Lengths], peaks: Peaks, *, steps: float, precision: Precision = BF16
) -> float:
    peak = peaks.fp8 if precision.is_fp8 else peaks.bf16
    seconds = matrix_flops(shape, requests) / peak + prompt_attention_flops(shape, requests) / peaks.bf16
    weight_bytes = steps * shape.step_params * precision.weight_bytes
    return seconds + (kv_bytes_read(shape, requests, precision) + weight_bytes) / peaks.bandwidth


def decode_share(shape: Shape, step_seconds: float, peaks: Peaks, precision: Precision = BF16) -> float:
    """Of one stream with a short context: the time to read the weights once over the time of a step."""
    return shape.step_params * precision.weight_bytes / peaks.bandwidth / step_seconds


def kv_slope_share(shape: Shape, seconds_a_token: float, peaks: Peaks, precision: Precision = BF16) -> float:
    """How fast the cache is read, as a share of the bandwidth: from by how much each token of context lengthens a
    step."""
    return shape.kv_values * precision.kv_bytes / seconds_a_token / peaks.bandwidth


def line_fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(slope, intercept) of the straight line through (x, y) with the least squares."""
    count = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / count, sum(y for _, y in points) / count
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
    return slope, mean_y - slope * mean_x
