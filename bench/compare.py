"""octavo and llama.cpp's server on the same .gguf file, one at a time, in turn; prints both and the ratios.

    python bench/compare.py [MODEL] [--rounds 2] [--concurrency 1,8,32] [--json bench/results/compare.json]

Quiet the machine first: the figures of two busy minutes cannot be compared. llama-server is taken from $PEERS/llama
or from the PATH. Of several rounds each figure is the best, which is the one that neighbours disturbed least.
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from load import Shape, measure, table
from machine import limits, stamp
from serve import add_load_arguments, keep, shapes
from servers import free_port, llama_command, llama_server, octavo_command, running

from octavo.config import ModelConfig
from octavo.sources import resolve_model


def run_once(name: str, command: list[str], port: int, levels: list[Shape], seed: int) -> dict[str, Any]:
    with running(name, command, port) as server:
        result = asyncio.run(measure(server.url, levels, model="bench", seed=seed))
        result |= {"name": name, "ready_s": server.ready_s, "memory_mib": server.memory()}
    print(f"{name}: ready in {result['ready_s']} s, {result['memory_mib']['pss']:.0f} MiB")
    print(table(result["levels"]), flush=True)
    return result


def ratios(runs: list[dict[str, Any]]) -> list[str]:
    """octavo over llama.cpp, a line a level; above 1 is better for octavo in every column."""
    lines = []
    for i, level in enumerate(runs[0]["levels"]):
        best: dict[str, dict[str, float]] = {}
        for name in ("octavo", "llama.cpp"):
            levels = [run["levels"][i] for run in runs if run["name"] == name]
            tpots = [one["tpot_ms"]["mean"] for one in levels if one["tpot_ms"]["mean"]]
            best[name] = {
                "output tok/s": max(one["output_tok_s"] for one in levels),
                "TTFT": 1 / min(one["ttft_ms"]["p50"] for one in levels),
                "time per token": 1 / min(tpots) if tpots else 0.0,
            }
        parts = [
            f"{figure} x{best['octavo'][figure] / value:.2f}" for figure, value in best["llama.cpp"].items() if value
        ]
        lines.append(f"{level['concurrency']:>3} streams, {level['output_len']:>3} out: {', '.join(parts)}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a .gguf file, or the demo model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flags", default="", help="more flags for octavo serve, in one word")
    parser.add_argument("--context", type=int, default=1024, help="tokens in one slot of llama-server [1024]")
    add_load_arguments(parser)
    args = parser.parse_args()
    binary = llama_server()
    if binary is None:
        print("bench: no llama-server in $PEERS/llama nor on the PATH", file=sys.stderr)
        return 1
    model = str(resolve_model(ModelConfig(model=args.model)))
    levels = [*shapes(args), Shape(concurrency=1, requests=6, prompt_words=400, output_len=1)]
    slots = max(level.concurrency for level in levels)
    machine, at_best, runs = stamp(), limits(), []
    print(f"machine: {machine['cpu']}, {machine['cores']} cores, load {machine['load_average']:.1f}; {at_best}")
    for _ in range(args.rounds):
        port = free_port()
        command = llama_command(binary, model, port, slots, args.context)
        runs.append(run_once("llama.cpp", command, port, levels, args.seed))
        port = free_port()
        runs.append(run_once("octavo", octavo_command(model, port, shlex.split(args.flags)), port, levels, args.seed))
    print("\n".join(ratios(runs)))
    keep(args.json, {"machine": machine, "limits": at_best, "model": model, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
