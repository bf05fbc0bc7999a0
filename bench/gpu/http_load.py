"""Streams over HTTP from several processes, so that the clients are not what is measured.

python -m gpu.http_load FILE      one client: its requests are in FILE, and its replies are written there
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu.workloads import Load, Work
from octavo.bench.config import ServeBenchConfig
from octavo.bench.datasets import Prompt
from octavo.bench.http import Reply, Server
from octavo.bench.load import Level, arrival_times, summary

#: Seconds from now when all clients begin: they have to be there by then.
_COUNTDOWN = 2.0


def drive(
    url: str, load: Load, directory: Path, *, processes: int = 4, streams: int | None = None, seconds: float = 300.0
) -> dict[str, Any]:
    """The figures of `octavo bench serve` for a load; at most `streams` at a time. Raises RuntimeError."""
    count = len(load.works)
    rng = random.Random(count)
    due = arrival_times(count, load.rate or float("inf"), rng)
    processes = max(1, min(processes, count, streams or count))
    begin = time.time() + _COUNTDOWN
    files, clients = [], []
    for i in range(processes):
        mine = [(work.prompt, work.output_len, at) for work, at in zip(load.works, due, strict=True)][i::processes]
        task = {"url": url, "begin": begin, "works": mine, "temperature": load.temperature, "seconds": seconds}
        # The first clients take what does not divide evenly.
        task["streams"] = None if streams is None else streams // processes + (i < streams % processes)
        file = directory / f"client-{i}.json"
        file.write_text(json.dumps(task))
        files.append(file)
        clients.append(subprocess.Popen([sys.executable, "-m", "gpu.http_load", str(file)]))
    try:
        codes = [client.wait(seconds) for client in clients]
    finally:
        for client in clients:
            client.kill()
            client.wait()
    if any(codes):
        raise RuntimeError(f"clients ended with the exit codes {codes}")
    replies = [Reply(**values) for file in files for values in json.loads(file.read_text())]
    # perf_counter is one clock for all processes of the machine.
    spent = max(reply.end for reply in replies) - min(reply.start for reply in replies)
    return summary(Level(streams, load.rate or float("inf")), replies, spent)


async def _client(task: dict[str, Any]) -> list[Reply]:
    config = ServeBenchConfig(
        url=task["url"], temperature=task["temperature"], request_timeout=task["seconds"], progress=False
    )
    server = Server(config, "EMPTY")
    works = [(Work(prompt, output_len), at) for prompt, output_len, at in task["works"]]
    slots = asyncio.Semaphore(task["streams"] or len(works))

    async def one(work: Work, at: float) -> Reply:
        await asyncio.sleep(max(0.0, task["begin"] + at - time.time()))
        async with slots:
            return await server.complete("bench", Prompt(work.prompt, work.output_len))

    return await asyncio.gather(*(one(work, at) for work, at in works))


def first_token_ms(url: str, prompts: Sequence[list[int]]) -> list[float]:
    """Milliseconds to the first piece of a stream, one prompt after the other. Raises RuntimeError."""
    server = Server(ServeBenchConfig(url=url, progress=False), "EMPTY")
    found = []
    for prompt in prompts:
        reply = asyncio.run(server.complete("bench", Prompt(prompt, 2)))
        if reply.error is not None:
            raise RuntimeError(reply.error)
        found.append(1000 * (reply.stamps[0] - reply.start))
    return found


def main(file: Path) -> None:
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        replies = runner.run(_client(json.loads(file.read_text())))
    file.write_text(json.dumps([dataclasses.asdict(reply) for reply in replies]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
