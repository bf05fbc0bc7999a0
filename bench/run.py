"""Start octavo, load it with `octavo bench serve`, stop it (`make bench`).

    python bench/run.py [--serve "MODEL --kv-cache-dtype bfloat16"] [flags of octavo bench serve]

Without flags there are two loads: streams that read about 96 tokens and write 64, and prompts of about 400 alone.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from servers import free_port, octavo_command, running

from octavo.config import ModelConfig
from octavo.sources import resolve_model

STREAMS = ["--max-concurrency", "1,8,32", "--random-input-len", "96", "--random-output-len", "64"]
PROMPTS = ["--max-concurrency", "1", "--random-input-len", "400", "--random-output-len", "1", "--num-prompts", "6"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.allow_abbrev = False
    parser.add_argument("--serve", default="smollm2", help="model and flags of octavo serve, in one word [smollm2]")
    args, others = parser.parse_known_args()
    name, *flags = shlex.split(args.serve)
    model, port = resolve_model(ModelConfig(model=name)), free_port()
    with running("octavo", octavo_command(str(model), port, flags), port) as server:
        bench = [sys.executable, "-m", "octavo", "bench", "serve", "--url", server.url]
        # The file of a GGUF model is about what is read of it for a token.
        weights = ["--weight-bytes", str(model.stat().st_size)] if model.is_file() else []
        codes = [subprocess.call([*bench, *weights, *(others or STREAMS)])]
        if not others:
            codes.append(subprocess.call([*bench, *PROMPTS]))
        memory = server.memory()
    print(f"ready in {server.ready_s} s; memory {memory['pss']:.0f} MiB (pss), {memory['rss']:.0f} MiB (rss)")
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
