"""octavo beside other servers: the same loads on each, one server at a time, and the ratios.

    python bench/compare.py                                      octavo on the demo model
    python bench/compare.py --llama                              and llama.cpp's server on the same file
    python bench/compare.py --peer vllm=http://127.0.0.1:8000    and a server that is running, anybody's
    python bench/compare.py MODEL --flags "--num-threads 1" --rows alone,32 --rounds 2 --json FILE

Quiet the machine first: the figures of two busy minutes cannot be compared. A peer that is running already should be
idle and must not spin. Of several rounds each figure is the best, which is the one that neighbours disturbed least.
llama-server is taken from $PEERS/llama or from the PATH.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from servers import free_port, llama_command, llama_server, octavo_command, running

from octavo.base.config import ModelConfig
from octavo.bench import report, serve
from octavo.bench.config import ServeBenchConfig
from octavo.bench.limits import Limits, measure_limits
from octavo.bench.machine import stamp
from octavo.files.sources import resolve_model


@dataclasses.dataclass(frozen=True)
class Row:
    """One load and the figures that are told of it. `busy`: a process that computes runs beside the server."""

    title: str
    load: dict[str, Any]
    figures: tuple[str, ...]
    busy: bool = False


def _streams(count: int, input_len: int = 96, output_len: int = 64, **more: Any) -> dict[str, Any]:
    return {"max_concurrency": [count], "random_input_len": input_len, "random_output_len": output_len, **more}


_RATES, _ALONE = ("output tok/s", "first token, ms"), ("output tok/s", "ms a token")
ROWS = {
    "alone": Row("1 stream", _streams(1, output_len=128), _ALONE),
    "busy": Row("1 stream beside a busy process", _streams(1, output_len=128), _ALONE, busy=True),
    "prompt": Row("a prompt of 512", _streams(1, 512, 1), ("prompt tok/s",)),
    **{str(n): Row(f"{n} streams", _streams(n), _RATES) for n in (8, 32, 64)},
    "long": Row("1 stream, context 4,000", _streams(1, 4000, 128, num_prompts=2), ("ms a token",)),
    "long16": Row("16 streams, context 4,000", _streams(16, 4000, 128, num_prompts=16), ("output tok/s",)),
    "beside": Row(
        "4 streams, a prompt of 4,000 every second",
        _streams(4, output_len=256, num_prompts=8, beside_input_len=4000),
        ("p99 over p50 between tokens",),
    ),
}
#: Figures of which less is better.
_LESS = ("first token, ms", "ms a token", "p99 over p50 between tokens", "ready, s", "memory, MiB")


def figure(name: str, level: dict[str, Any]) -> float | None:
    """A figure of one level, None where the server gave nothing to count."""
    itl = level["itl_ms"]
    if name == "output tok/s":
        return float(level["output_tok_s"])
    if name == "first token, ms":
        return level["ttft_ms"] and float(level["ttft_ms"]["median"])
    if name == "ms a token":
        return level["tpot_ms"] and float(level["tpot_ms"]["median"])
    if name == "prompt tok/s":
        if not level["prompt_tokens"] or not level["ttft_ms"]:
            return None
        return float(1000 * level["prompt_tokens"] / level["completed"] / level["ttft_ms"]["median"])
    return itl and float(itl["p99"] / itl["median"])


@contextlib.contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        spin.kill()
        spin.wait()


def measure(
    url: str, rows: Sequence[str], seed: int, memory: Callable[[], float] | None = None
) -> dict[str, dict[str, float | None]]:
    """Row -> figure -> value, on a server that is running. `memory` is asked behind the row of 32 streams."""
    found: dict[str, dict[str, float | None]] = {}
    for key in rows:
        row = ROWS[key]
        config = ServeBenchConfig(url=url, seed=seed, progress=False, **row.load)
        with busy_process(row.busy):
            level = serve.run(config, "EMPTY")["levels"][0]
        if level["failed"]:
            print(f"bench: {row.title}: {level['errors']}", file=sys.stderr)
        found[key] = {name: figure(name, level) for name in row.figures} if level["completed"] else {}
        if key == "32" and memory is not None:
            found["memory"] = {"memory, MiB": memory()}
        print(f"  {row.title}: " + ", ".join(f"{n} {v:.1f}" for n, v in found[key].items() if v), flush=True)
    return found


def started(name: str, command: list[str], port: int, rows: Sequence[str], seed: int) -> dict[str, Any]:
    print(name, flush=True)
    with running(name, command, port) as server:
        figures = measure(server.url, rows, seed, lambda: server.memory()["pss"])
    return {"name": name, "figures": {**figures, "start": {"ready, s": server.ready_s}}}


def best(runs: Sequence[dict[str, Any]], name: str, row: str, figure_name: str) -> float | None:
    values = [run["figures"].get(row, {}).get(figure_name) for run in runs if run["name"] == name]
    known = [value for value in values if value]
    if not known:
        return None
    return min(known) if figure_name in _LESS else max(known)


def lines(runs: Sequence[dict[str, Any]], rows: Sequence[str]) -> str:
    """All servers side by side; behind each peer how many times better octavo is."""
    names = list(dict.fromkeys(run["name"] for run in runs))
    peers = [name for name in names if name != "octavo"]
    head = ["", "", "octavo", *(word for peer in peers for word in (peer, "ratio"))]
    found = []
    titles = {key: (ROWS[key].title, ROWS[key].figures) for key in rows}
    titles |= {"start": ("the process", ("ready, s",)), "memory": ("behind 32 streams", ("memory, MiB",))}
    for key, (title, figures) in titles.items():
        for name in figures:
            own = best(runs, "octavo", key, name)
            line: list[Any] = [title, name, own]
            for peer in peers:
                other = best(runs, peer, key, name)
                ratio = None if own is None or other is None else other / own if name in _LESS else own / other
                line += [other, None if ratio is None else f"x{ratio:.2f}"]
            found.append(line)
    return report.table(head, found)


def shares(runs: Sequence[dict[str, Any]], weight_bytes: int | None, limits: Limits | None) -> str | None:
    """What one stream reads of its weights, as a share of the memory's bandwidth."""
    token_ms = best(runs, "octavo", "alone", "ms a token")
    if weight_bytes is None or token_ms is None:
        return None
    return f"one stream reads its weights at {report.bandwidth(weight_bytes / token_ms / 1e6, limits)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2", help="as octavo serve takes it [the demo model]")
    parser.add_argument("--llama", action="store_true", help="compare with llama.cpp's server on the same .gguf file")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=URL", help="a server that is running")
    parser.add_argument("--rows", default=",".join(ROWS), help="which loads [all]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--flags", default="", help="more flags for octavo serve, in one word")
    parser.add_argument("--context", type=int, default=4608, help="tokens in one slot of llama-server [4608]")
    parser.add_argument("--slots", type=int, default=32, help="slots of llama-server [32]")
    parser.add_argument("--seed", type=int, default=1, help="seed of the prompts [1]")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    args = parser.parse_args()
    rows = args.rows.split(",")
    unknown = [row for row in rows if row not in ROWS]
    wrong = [peer for peer in args.peer if "=" not in peer]
    binary = llama_server() if args.llama else None
    problems = {
        f"no rows {unknown}; there are {list(ROWS)}": unknown,
        f"--peer is NAME=URL, not {wrong}": wrong,
        "no llama-server in $PEERS/llama nor on the PATH": args.llama and binary is None,
    }
    for problem in (text for text, is_there in problems.items() if is_there):
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    model = resolve_model(ModelConfig(model=args.model))
    machine, limits, runs = stamp(), measure_limits(), []
    print(f"{machine['cpu']}, {machine['cores']} cores, load {machine['load_average']:.1f}; {limits}")
    for _ in range(args.rounds):
        port = free_port()
        runs.append(started("octavo", octavo_command(str(model), port, shlex.split(args.flags)), port, rows, args.seed))
        if binary is not None:
            port = free_port()
            command = llama_command(binary, str(model), port, args.slots, args.context)
            runs.append(started("llama.cpp", command, port, rows, args.seed))
        for peer in args.peer:
            name, url = peer.split("=", 1)
            print(name, flush=True)
            runs.append({"name": name, "figures": measure(url, rows, args.seed)})
    print(lines(runs, rows))
    # The file of a GGUF model is about what is read of it for a token.
    if told := shares(runs, model.stat().st_size if model.is_file() else None, limits):
        print(told)
    at_best = None if limits is None else dataclasses.asdict(limits)
    report.write(args.json, {"machine": machine, "limits": at_best, "model": str(model), "runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
