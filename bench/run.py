"""Start octavo, load it, and print its figures beside the limits of the machine (`make bench`).

python bench/run.py [MODEL] [--flags "--kv-cache-dtype bfloat16"] [--concurrency 1,8,32] [--json bench/results/x.json]
"""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from load import Shape, measure, table
from machine import limits, stamp
from serve import add_load_arguments, keep, shapes
from servers import free_port, octavo_command, running

from octavo.config import ModelConfig
from octavo.sources import resolve_model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--flags", default="", help="more flags for octavo serve, in one word")
    add_load_arguments(parser)
    args = parser.parse_args()
    model = resolve_model(ModelConfig(model=args.model))
    machine, port = stamp(), free_port()
    levels = [*shapes(args), Shape(concurrency=1, requests=6, prompt_words=400, output_len=1)]
    with running("octavo", octavo_command(str(model), port, shlex.split(args.flags)), port) as server:
        result = asyncio.run(measure(server.url, levels, seed=args.seed))
        memory = server.memory()
        at_best = limits()
    print(f"ready in {server.ready_s} s; memory {memory['pss']:.0f} MiB (pss), {memory['rss']:.0f} MiB (rss)")
    print(table(result["levels"]))
    if at_best is not None and model.is_file():
        print(f"machine: {at_best}")
        alone = next((level for level in result["levels"] if level["concurrency"] == 1), None)
        if alone is not None and alone["tpot_ms"]["mean"]:
            rate = model.stat().st_size / alone["tpot_ms"]["mean"] / 1e6
            share = rate / at_best["memory_read_gb_s"]
            print(f"one stream reads the weights at {rate:.1f} GB/s, {share:.0%} of what the memory gives")
    extra = {"ready_s": server.ready_s, "memory_mib": memory, "limits": at_best}
    keep(args.json, {"machine": machine, **extra, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
