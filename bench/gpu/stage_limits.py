"""What the GPU can do: the rates that all others are shares of. Nothing about the card is changed."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from gpu.context import Context
from gpu.roofline import Peaks
from gpu.timing import call_us, host_us

SIZE = 8192
COPY_BYTES = 4 << 30
HOST_BYTES = 256 << 20


def run(context: Context) -> None:
    if context.is_tiny:
        context.row("nothing", status="skipped", note="a CPU's limits are octavo bench kernels' business")
        return
    name = torch.cuda.get_device_name()
    properties = torch.cuda.get_device_properties(0)
    note = f"{name}, {properties.multi_processor_count} SMs, {properties.total_memory / 2**30:.1f} GiB"
    bandwidth = _copy_rate()
    context.row("copy, bytes read and written", bandwidth / 1e9, "GB/s", note=note, **_sheet(context, bandwidth))
    bf16 = _bf16_rate()
    sheet = context.sheet
    share = {} if sheet is None else {"sheet": bf16 / sheet.bf16}
    context.row(f"bf16 product, {SIZE} cubed", bf16 / 1e12, "TFLOP/s", note="torch.mm", **share)
    fp8 = _fp8_rate(context)
    peaks = Peaks(bf16=bf16, fp8=fp8 or bf16, bandwidth=bandwidth)
    (context.directory / "limits.json").write_text(json.dumps(peaks.to_json()))
    _launches(context)
    _host_rates(context)


def _sheet(context: Context, bandwidth: float) -> dict[str, float]:
    return {} if context.sheet is None else {"sheet": bandwidth / context.sheet.bandwidth}


def _copy_rate() -> float:
    source = torch.empty(COPY_BYTES // 4, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / (1e-6 * call_us([lambda: target.copy_(source)], samples=15, is_captured=False))


def _random(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(SIZE, SIZE, device="cuda", dtype=torch.bfloat16).to(dtype)


def _bf16_rate() -> float:
    a, b = _random(), _random()
    out = torch.empty_like(a)
    return 2 * SIZE**3 / (1e-6 * call_us([lambda: torch.mm(a, b, out=out)], samples=15, is_captured=False))


def _fp8_rate(context: Context) -> float | None:
    """None where the card or torch has no fp8."""
    what = f"fp8 product, {SIZE} cubed"
    if torch.cuda.get_device_capability() < (8, 9):
        context.row(what, status="skipped", note="the card has no fp8")
        return None
    a, b = _random(torch.float8_e4m3fn), _random(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")

    def product() -> Tensor:
        return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    try:
        rate = 2 * SIZE**3 / (1e-6 * call_us([product], samples=15, is_captured=False))
    except RuntimeError as error:
        context.row(what, status="failed", note=str(error))
        return None
    share = {} if context.sheet is None else {"sheet": rate / context.sheet.fp8}
    context.row(what, rate / 1e12, "TFLOP/s", note="torch._scaled_mm, fast accumulation", **share)
    return rate


def _launches(context: Context) -> None:
    one = torch.zeros(1, device="cuda")
    context.row("launch of a kernel, host's side", host_us(lambda: one.add_(1.0), 2000), "us", note="torch's add_")
    calls = [lambda: one.add_(1.0)] * 500
    context.row("empty kernel in a graph", call_us(calls), "us", note="from kernel to kernel")


def _host_rates(context: Context) -> None:
    host = torch.empty(HOST_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(HOST_BYTES, dtype=torch.uint8, device="cuda")
    for what, call in (
        ("pinned host to device", lambda: there.copy_(host, non_blocking=True)),
        ("device to pinned host", lambda: host.copy_(there, non_blocking=True)),
    ):
        seconds = 1e-6 * call_us([call], samples=5, is_captured=False)
        context.row(what, HOST_BYTES / seconds / 1e9, "GB/s")
