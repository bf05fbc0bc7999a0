"""octavo and llama.cpp's server on the same .gguf file, one at a time, in turn; prints both and the ratios.

    python bench/compare.py [MODEL] [--rounds 2] [--concurrency 1,8,32] [--json bench/results/compare.json]

Quiet the machine first: the figures of two busy minutes cannot be compared. llama-server is taken from $PEERS/llama
or from the PATH. Of several rounds each figure is the best, which is the one that neighbours disturbed least.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from servers import free_port, llama_command, llama_server, octavo_command, running

from octavo.bench import report, serve
from octavo.bench.config import ServeBenchConfig
from octavo.bench.limits import measure_limits
from octavo.bench.machine import stamp
from octavo.config import ModelConfig
from octavo.sources import resolve_model


def loads(args: argparse.Namespace) -> list[ServeBenchConfig]:
    """Streams at several levels, and long prompts alone."""
    streams = ServeBenchConfig(
        model="bench", seed=args.seed, progress=False, num_prompts=args.requests,
        max_concurrency=[int(level) for level in args.concurrency.split(",")],
        random_input_len=args.input_len, random_output_len=args.output_len,
    )  # fmt: skip
    alone = {"max_concurrency": [1], "num_prompts": 6, "random_input_len": 400, "random_output_len": 1}
    return [streams, dataclasses.replace(streams, **alone)]


def run_once(name: str, command: list[str], port: int, configs: Sequence[ServeBenchConfig]) -> dict[str, Any]:
    with running(name, command, port) as server:
        documents = [serve.run(dataclasses.replace(config, url=server.url), "EMPTY") for config in configs]
        memory = server.memory()
    print(f"{name}: ready in {server.ready_s} s, {memory['pss']:.0f} MiB")
    print("\n".join(serve.text(document) for document in documents), flush=True)
    levels = [level for document in documents for level in document["levels"]]
    return {"name": name, "ready_s": server.ready_s, "memory_mib": memory, "levels": levels}


def ratios(runs: list[dict[str, Any]]) -> list[str]:
    """octavo over llama.cpp, a line a level; above 1 is better for octavo in every column."""
    lines = []
    for i, level in enumerate(runs[0]["levels"]):
        best: dict[str, dict[str, float]] = {}
        for name in ("octavo", "llama.cpp"):
            levels = [run["levels"][i] for run in runs if run["name"] == name]
            tpots = [one["tpot_ms"]["mean"] for one in levels if one["tpot_ms"]]
            best[name] = {
                "output tok/s": max(one["output_tok_s"] for one in levels),
                "TTFT": 1 / min(one["ttft_ms"]["median"] for one in levels),
                "time per token": 1 / min(tpots) if tpots else 0.0,
            }
        parts = [
            f"{figure} x{best['octavo'][figure] / value:.2f}" for figure, value in best["llama.cpp"].items() if value
        ]
        out = level["output_tokens"] // max(1, level["completed"])
        lines.append(f"{level['max_concurrency']:>3} streams, {out:>3} out: {', '.join(parts)}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="a .gguf file, or the demo model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--flags", default="", help="more flags for octavo serve, in one word")
    parser.add_argument("--context", type=int, default=1024, help="tokens in one slot of llama-server [1024]")
    parser.add_argument("--concurrency", default="1,8,32", help="levels, separated by commas [1,8,32]")
    parser.add_argument("--requests", type=int, help="requests a level; default: as octavo bench serve")
    parser.add_argument("--input-len", type=int, default=96, help="tokens of a prompt, about [96]")
    parser.add_argument("--output-len", type=int, default=64, help="tokens of a reply [64]")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts [1]")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    binary = llama_server()
    if binary is None:
        print("bench: no llama-server in $PEERS/llama nor on the PATH", file=sys.stderr)
        return 1
    model = str(resolve_model(ModelConfig(model=args.model)))
    configs = loads(args)
    slots = max(configs[0].max_concurrency)
    machine, limits, runs = stamp(), measure_limits(), []
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']:.1f}; {limits}")
    for _ in range(args.rounds):
        port = free_port()
        runs.append(run_once("llama.cpp", llama_command(binary, model, port, slots, args.context), port, configs))
        port = free_port()
        runs.append(run_once("octavo", octavo_command(model, port, shlex.split(args.flags)), port, configs))
    print("\n".join(ratios(runs)))
    at_best = None if limits is None else dataclasses.asdict(limits)
    report.write(args.json, {"machine": machine, "limits": at_best, "model": model, "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
