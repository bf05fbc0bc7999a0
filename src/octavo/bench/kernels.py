"""`octavo bench kernels`: each operation's rates, as shares of what the machine can do at best at that moment."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base import host
from octavo.base.config import ParallelConfig
from octavo.base.errors import InvalidConfig
from octavo.bench.cases import Case, cases
from octavo.bench.config import KernelsConfig
from octavo.bench.limits import Limits, measure_limits
from octavo.bench.machine import stamp
from octavo.bench.report import result, table
from octavo.device.cpu import CPUDevice
from octavo.ops.table import bind

#: Seconds that a pass takes at least, so that the clock and one slow moment do not decide.
PASS_SECONDS = 0.02
_HEAD = ("operation", "of", "rows", "us", "GB/s", "of memory", "GOP/s", "of peak", "by")


def kernels(config: KernelsConfig, pass_seconds: float = PASS_SECONDS) -> dict[str, Any]:
    """Time all cases, as a JSON document. Raises `DeviceError` for an --isa that this CPU has not."""
    _check(config)
    machine = stamp()
    device = CPUDevice(ParallelConfig(num_threads=config.num_threads, isa=config.isa))
    ops = bind("cpu")
    limits = measure_limits(device.num_threads)
    rows = []
    with tqdm(desc="operations", unit="op", disable=None if config.progress else True) as bar:
        for case in cases(config, ops):
            seconds = call_seconds(getattr(ops, case.op), case.copies, config.passes, pass_seconds)
            rows.append({**_figures(case, seconds, limits), "by": ops.implementations[case.op]})
            bar.update()
    return dict(result("kernels", config, machine, limits, device=device.description, rows=rows))


def _check(config: KernelsConfig) -> None:
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % kv_heads:
        raise InvalidConfig(f"--num-heads ({heads}) must be a multiple of --num-kv-heads ({kv_heads})")
    if config.head_dim % 2:
        raise InvalidConfig(f"--head-dim ({config.head_dim}) must be even")
    free = host.free_memory()
    if config.spread_bytes > free.num_bytes:
        raise InvalidConfig(f"--spread-bytes asks for {host.gib(config.spread_bytes)}, and there are {free}")


def call_seconds(
    call: Callable[..., object], copies: Sequence[tuple[Any, ...]], passes: int, pass_seconds: float
) -> float:
    """The median over passes of the time of one call; each pass is at least about `pass_seconds` long.

    `copies` are the arguments of the calls, one after the other and round again.
    """
    start = time.perf_counter()
    call(*copies[0])
    calls = max(1, round(pass_seconds / max(1e-7, time.perf_counter() - start)))
    times, i = [], 0
    for _ in range(passes):
        start = time.perf_counter()
        for _ in range(calls):
            call(*copies[i])
            i = (i + 1) % len(copies)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def _figures(case: Case, seconds: float, limits: Limits | None) -> dict[str, Any]:
    gb_s, gop_s = case.num_bytes / seconds / 1e9, case.num_ops / seconds / 1e9
    figures: dict[str, Any] = {
        "op": case.op, "detail": case.detail, "rows": case.rows, "us": round(seconds * 1e6, 2), "gb_s": round(gb_s, 2),
        "memory_share": None, "gop_s": round(gop_s, 2) if case.num_ops else None, "peak_share": None,
    }  # fmt: skip
    if limits is not None:
        figures["memory_share"] = round(gb_s / limits.memory_read_gb_s, 3)
        if case.num_ops:
            peak = limits.int8_gop_s if case.is_integer else limits.float32_gflop_s
            figures["peak_share"] = round(gop_s / peak, 3)
    return figures


def text(document: Mapping[str, Any]) -> str:
    limits = document["limits"]
    lines = [document["device"] if limits is None else f"{document['device']}; {Limits(**limits)}"]
    rows = [
        [
            row["op"], row["detail"], row["rows"], row["us"], row["gb_s"], _percent(row["memory_share"]), row["gop_s"],
            _percent(row["peak_share"]), row["by"],
        ]
        for row in document["rows"]
    ]  # fmt: skip
    return "\n".join([*lines, table(_HEAD, rows)])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
