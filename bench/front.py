"""What is in front of the engine, at the speed of a GPU: the HTTP server and `octavo.LLM`, on an engine that only keeps
time. Its steps last as long as is said, its tokens mean nothing; all else is what it always is.

    python bench/front.py MODEL_DIR [--streams 256] [--input-len 128] [--output-len 128] [--step-ms 2.5] [--processes 2]

Tells tokens a second through both, as shares of what the engine could make, and microseconds of CPU for each token;
over HTTP with one API process, and with `--processes`. The engine and the load take cores too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from servers import free_port, running

from octavo.base.config import EngineConfig
from octavo.base.params import SamplingParams
from octavo.cli import main as octavo
from octavo.core.process import main as engine
from octavo.launch import engine_process
from octavo.offline.llm import LLM
from octavo.wire.messages import EngineInfo
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput, TokenMasks

#: How this file is started again: as the engine, and as the server on such an engine.
ENGINE, SERVER = "--as-engine", "--as-server"
STEP_SECONDS = "FRONT_STEP_SECONDS"
#: Prompt tokens that take as long as a step of decoding.
_PROMPT_TOKENS = 4000


class Clock:
    """An executor whose steps follow one another as on a GPU, and take time."""

    def __init__(self, config: EngineConfig, on_phase: Callable[[str, str], None]) -> None:
        self._seconds = float(os.environ[STEP_SECONDS])
        self._num_seqs = config.scheduler.max_num_seqs
        self._slots: dict[int, list[int]] = {}  # slot -> tokens that are computed, tokens that are known
        self._end = 0.0

    def load(self) -> EngineInfo:
        return EngineInfo(
            model_type="clock", vocab_size=300_000, max_model_len=8192, num_kv_blocks=self._num_seqs * 512 + 1,
            block_size=16, max_num_seqs=self._num_seqs, max_num_batched_tokens=8192, max_num_prefill_tokens=8192,
            max_request_tokens=8192, kv_cache_bytes=0, weight_bytes=0, num_params=0, dtype="", kv_cache_dtype="",
            quantization="none", device="clock", ops={}, load_seconds={}, plans_ahead=True,
        )  # fmt: skip

    def submit(self, plan: SchedulerOutput) -> tuple[float, dict[int, list[int]]]:
        for slot in plan.finished_slots:
            self._slots.pop(slot, None)
        for new in plan.new_requests:
            self._slots[new.slot] = [new.num_computed_tokens, len(new.prompt_token_ids)]
        for known in plan.cached_requests:
            self._slots[known.slot][0] = known.num_computed_tokens
        ids: dict[int, list[int]] = {}
        for slot, count in plan.num_scheduled_tokens.items():
            state = self._slots[slot]
            state[0] += count
            ids[slot] = []
            if state[0] == state[1]:
                ids[slot] = [500 + (7919 * state[1] + 31 * slot) % 1500]
                state[1] += 1
        work = 1 + (plan.total_num_scheduled_tokens - len(ids)) / _PROMPT_TOKENS
        self._end = max(self._end, time.monotonic()) + work * self._seconds
        return self._end, ids

    def submit_masks(self, step: tuple[float, dict[int, list[int]]], masks: TokenMasks) -> None: ...

    def collect(self, step: tuple[float, dict[int, list[int]]]) -> ModelRunnerOutput:
        end, ids = step
        time.sleep(max(0.0, end - time.monotonic()))
        return ModelRunnerOutput(sampled_token_ids=ids)


def cpu_seconds() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def offline(args: argparse.Namespace) -> tuple[float, float]:
    """Tokens a second, and CPU seconds a token of this process."""
    rng = random.Random(0)
    llm = LLM(args.model, max_num_seqs=args.streams)
    params = SamplingParams(max_tokens=args.output_len, ignore_eos=True, temperature=0.0)
    rates = []
    for count in (args.streams, args.requests, args.requests):  # the first warms up
        prompts = [[rng.randrange(500, 2000) for _ in range(args.input_len)] for _ in range(count)]
        start, cpu = time.perf_counter(), cpu_seconds()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        rates.append((tokens / (time.perf_counter() - start), (cpu_seconds() - cpu) / tokens))
    llm.close()
    return max(rates[1:])


def api_seconds(pid: int) -> float:
    """CPU seconds of a server's API processes."""
    server = psutil.Process(pid)
    processes = [each for each in server.children() if "octavo.launch.api_process" in each.cmdline()] or [server]
    return sum(times.user + times.system for times in (each.cpu_times() for each in processes))


def over_http(args: argparse.Namespace, num_processes: int) -> tuple[dict[str, Any], float]:
    """The figures of `octavo bench serve`, and CPU seconds a token of the API processes."""
    port = free_port()
    command = [sys.executable, __file__, SERVER, "serve", args.model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--max-num-seqs", str(args.streams), "--api-server-count", str(num_processes)]
    with tempfile.TemporaryDirectory() as directory, running("octavo", command, port) as server:
        file = Path(directory) / "figures.json"
        load = [sys.executable, "-m", "octavo", "bench", "serve", "--url", server.url, "--no-progress"]
        load += ["--max-concurrency", str(args.streams), "--num-prompts", str(args.requests), "--json", str(file)]
        load += ["--random-input-len", str(args.input_len), "--random-output-len", str(args.output_len)]
        before = api_seconds(server.pid)
        subprocess.run(load, check=True, stdout=subprocess.DEVNULL)
        cpu = api_seconds(server.pid) - before
        (figures,) = json.loads(file.read_text())["levels"]
    return figures, cpu / (args.requests * args.output_len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory with a tokenizer")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--step-ms", type=float, default=2.5)
    parser.add_argument("--processes", type=int, default=2, help="API processes, beside one")
    args = parser.parse_args()
    os.environ[STEP_SECONDS] = str(args.step_ms / 1000)
    engine_process.ENGINE_COMMAND = (sys.executable, __file__, ENGINE)
    limit = args.streams / args.step_ms * 1000
    rate, cpu = offline(args)
    print(f"LLM.generate: {rate:,.0f} tok/s, {rate / limit:.0%} of the engine's decoding; {1e6 * cpu:.1f} us a token")
    for num_processes in dict.fromkeys((1, args.processes)):
        figures, cpu = over_http(args, num_processes)
        served = figures["output_tok_s"]
        print(
            f"HTTP, {num_processes} API process(es): {served:,.0f} tok/s, {served / rate:.0%} of LLM.generate; "
            f"{1e6 * cpu:.1f} us a token; TTFT p50 {figures['ttft_ms']['median']:.0f} ms, "
            f"ITL p50 {figures['itl_ms']['median']:.1f} ms"
        )


if __name__ == "__main__":
    if ENGINE in sys.argv:
        sys.argv.remove(ENGINE)
        sys.exit(engine(make_executor=Clock))
    if SERVER in sys.argv:
        sys.argv.remove(SERVER)
        engine_process.ENGINE_COMMAND = (sys.executable, __file__, ENGINE)
        sys.exit(octavo())
    main()
