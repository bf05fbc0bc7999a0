"""How fast `linear` is: GB/s of packed weights and GOP/s, beside the read bandwidth measured in the same minute.

    PYTHONPATH=src python bench/kernels.py [--threads 2] [--kinds int4,int8,bf16] [--rows 1,8,32,512]

A figure is the median of several passes over enough copies of the weight to leave the caches, as a model's layers do.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from octavo import _cpu
from octavo.ops.cpu_linear import LinearWeight, linear, pack_linear
from octavo.quant.packed import QuantizedWeight

#: (K, N) of SmolLM2-135M: qkv, attention output, gate and up, down, output layer.
SHAPES = [(576, 960), (576, 576), (576, 3072), (1536, 576), (576, 49152)]
SPREAD_BYTES = 96 << 20


def make(kind: str, n: int, k: int) -> LinearWeight:
    if kind in ("bf16", "f16", "f32"):
        dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[kind]
        return pack_linear(torch.randn(n, k).to(dtype))
    bits = {"int4": 4, "q4_0": 4, "int5": 5, "int6": 6, "int8": 8}[kind]
    group, mins = (16, False) if bits == 6 else (32, kind == "int4")
    dtype = torch.float32 if bits == 6 else torch.float16
    values = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    scales = torch.rand(n, k // group).to(dtype)
    return pack_linear(
        QuantizedWeight(values, bits, group, scales, -scales if mins else None, 0 if mins else 2 ** (bits - 1))
    )


def seconds(run: Callable[[int], None], calls: int, passes: int) -> float:
    """Median over passes of the time of one call."""
    run(0)
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        for i in range(calls):
            run(i)
        times.append((time.perf_counter() - start) / calls)
    return statistics.median(times)


def read_bandwidth() -> float:
    """GB/s of summing 256 MB with all threads: what a decode step could reach at best."""
    data = torch.ones(64 << 20)
    torch.set_num_threads(_cpu.num_threads())
    return data.nbytes / min(seconds(lambda _: data.sum(), 1, 5) for _ in range(3)) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", default="int4,int6,int8,bf16")
    parser.add_argument("--rows", default="1,8,32,512")
    parser.add_argument("--shapes", default="")
    args = parser.parse_args()
    _cpu.set_num_threads(args.threads)
    shapes = [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")] if args.shapes else SHAPES
    limit = read_bandwidth()
    print(f"{_cpu.isa()}, {args.threads} threads, reads {limit:.1f} GB/s")
    print(f"{'kind':5} {'K':>5} {'N':>6} {'M':>4} {'us':>9} {'GB/s':>6} {'share':>6} {'GOP/s':>7}")
    for kind in args.kinds.split(","):
        for k, n in shapes:
            first = make(kind, n, k)
            weights = [first] + [make(kind, n, k) for _ in range(min(200, SPREAD_BYTES // first.nbytes))]
            for m in map(int, args.rows.split(",")):
                x, out = torch.randn(m, k), torch.empty(m, n)
                few = 2 * n * k * m > 2e8
                calls = max(1, min(3, len(weights))) if few else len(weights)
                t = seconds(lambda i, o=out, y=x, w=weights: linear(o, y, w[i % len(w)]), calls, 3 if few else 7)
                rate = first.nbytes / t / 1e9
                gops = 2e-9 * m * n * k / t
                row = f"{kind:5} {k:5} {n:6} {m:4} {t * 1e6:9.1f} {rate:6.1f} {rate / limit:6.0%} {gops:7.1f}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
