"""Load a server that is running, at several levels of concurrency, and print what it gave.

    python bench/serve.py --url http://127.0.0.1:8000 --concurrency 1,8,32 --prompt-words 96 --output-len 64
    python bench/serve.py --url http://127.0.0.1:8000 --concurrency 1 --prompt-words 400 --output-len 1

Works with any OpenAI-compatible server. --json FILE keeps the figures with a stamp of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from load import LoadError, Shape, measure, table
from machine import stamp


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", default="1,8,32", help="levels, separated by commas [1,8,32]")
    parser.add_argument("--prompt-words", type=int, default=96, help="words in a prompt [96]")
    parser.add_argument("--output-len", type=int, default=64, help="tokens in a reply [64]")
    parser.add_argument("--requests", type=int, help="requests a level; default: twice the streams, at least 4")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts [1]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")


def shapes(args: argparse.Namespace) -> list[Shape]:
    levels = [int(level) for level in args.concurrency.split(",")]
    return [Shape(n, args.requests or max(4, 2 * n), args.prompt_words, args.output_len) for n in levels]


def keep(file: Path | None, result: dict[str, Any]) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server, without /v1")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--api-key")
    add_load_arguments(parser)
    args = parser.parse_args()
    machine = stamp()
    try:
        result = asyncio.run(measure(args.url, shapes(args), model=args.model, api_key=args.api_key, seed=args.seed))
    except* (LoadError, OSError, TimeoutError) as group:
        print(f"bench: {group.exceptions[0]}", file=sys.stderr)
        sys.exit(1)
    print(table(result["levels"]))
    keep(args.json, {"machine": machine, **result})
    return 0


if __name__ == "__main__":
    sys.exit(main())
