"""`octavo bench serve`: the levels of a load on one server, in turn.

Nothing of the engine and none of its packages is imported here: the server may be anybody's, anywhere.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base.errors import InvalidConfig
from octavo.bench.config import ServeBenchConfig
from octavo.bench.datasets import Prompt, check_dataset, prompts, random_text
from octavo.bench.http import LoadError, Server
from octavo.bench.limits import Limits, measure_limits
from octavo.bench.load import Beside, Level, Send, run_level
from octavo.bench.machine import stamp
from octavo.bench.report import bandwidth, result, table

WARMUP = Prompt("", 8)
WARMUP_WORDS = 16
BESIDE_INTERVAL = 1.0
UNBOUNDED_PROMPTS = 100
_HEAD = (
    "streams", "req/s", "ok", "failed", "in", "out", "out tok/s", "total tok/s",
    *(f"{name} {figure}" for name in ("TTFT", "TPOT", "ITL") for figure in ("mean", "p50", "p99")),
)  # fmt: skip


def levels(config: ServeBenchConfig) -> list[Level]:
    bounds: Sequence[int | None] = config.max_concurrency or [None]
    return [Level(bound, config.request_rate) for bound in bounds]


def num_prompts(config: ServeBenchConfig, level: Level) -> int:
    if config.num_prompts is not None:
        return config.num_prompts
    return UNBOUNDED_PROMPTS if level.max_concurrency is None else max(8, 4 * level.max_concurrency)


async def measure(config: ServeBenchConfig, key: str) -> dict[str, Any]:
    """The whole benchmark, as a JSON document. Raises `OctavoError` when the server answers nothing at all."""
    check_dataset(config)
    server, machine = Server(config, key), stamp()
    rng = random.Random(config.seed)
    beside = _beside(config, rng)
    work = [(level, prompts(config, num_prompts(config, level), rng)) for level in levels(config)]
    model = config.model or await server.first_model()
    await _warm_up(server, model, config, rng)
    found = []
    for level, given in work:
        streams = "all at once" if level.max_concurrency is None else f"{level.max_concurrency} streams"
        with tqdm(total=len(given), desc=streams, unit="req", disable=None if config.progress else True) as bar:
            send: Send = partial(server.complete, model)
            found.append(await run_level(level, given, send, rng, beside=beside, on_done=bar.update))
    limits = measure_limits() if config.weight_bytes is not None else None
    if config.weight_bytes is not None:
        for figures in found:
            _note_bandwidth(figures, config.weight_bytes, limits)
    return dict(result("serve", replace(config, model=model), machine, limits, model=model, levels=found))


def _beside(config: ServeBenchConfig, rng: random.Random) -> Beside | None:
    """Raises `InvalidConfig`."""
    words, interval = config.beside_input_len, config.beside_interval
    if words is None:
        if interval is not None:
            raise InvalidConfig("--beside-interval goes with --beside-input-len")
        return None
    return Beside(lambda: Prompt(random_text(rng, words), 1), interval or BESIDE_INTERVAL)


async def _warm_up(server: Server, model: str, config: ServeBenchConfig, rng: random.Random) -> None:
    """Short requests, which also show that the server answers. Raises `LoadError`."""
    for _ in range(config.num_warmups):
        reply = await server.complete(model, replace(WARMUP, content=random_text(rng, WARMUP_WORDS)))
        if reply.error is not None:
            raise LoadError(f"a first request to {server.url} failed: {reply.error}")


def _note_bandwidth(figures: dict[str, Any], weight_bytes: int, limits: Limits | None) -> None:
    """One stream reads all weights for each token; several share the reading, so that the bytes are not known."""
    if figures["max_concurrency"] != 1 or figures["tpot_ms"] is None:
        return
    rate = weight_bytes / figures["tpot_ms"]["median"] / 1e6
    figures["weights_gb_s"] = round(rate, 2)
    figures["memory_share"] = None if limits is None else round(rate / limits.memory_read_gb_s, 3)


def text(document: dict[str, Any]) -> str:
    """The figures for people. Times are in milliseconds."""
    lines = [table(_HEAD, [_row(level) for level in document["levels"]])]
    limits = None if document["limits"] is None else Limits(**document["limits"])
    for level in document["levels"]:
        if "weights_gb_s" in level:
            lines.append(f"one stream reads its weights at {bandwidth(level['weights_gb_s'], limits)}")
        lines += [f"{count} x failed: {error}" for error, count in level["errors"].items()]
    return "\n".join(lines)


def _row(level: dict[str, Any]) -> list[Any]:
    count = max(1, level["completed"])
    prompt = None if level["prompt_tokens"] is None else level["prompt_tokens"] / count
    row = [
        "all" if level["max_concurrency"] is None else level["max_concurrency"],
        level["requests_per_s"], level["completed"], level["failed"],
        prompt, level["output_tokens"] / count, level["output_tok_s"], level["total_tok_s"],
    ]  # fmt: skip
    for name in ("ttft_ms", "tpot_ms", "itl_ms"):
        figures = level[name] or {}
        row += [figures.get(figure) for figure in ("mean", "median", "p99")]
    return row


def file_name(document: dict[str, Any]) -> str:
    """For --save-result."""
    model = re.sub(r"[^\w.-]+", "-", str(document["model"])).strip("-") or "model"
    return f"bench-serve-{model}-{time.strftime('%Y%m%d-%H%M%S')}.json"


def run(config: ServeBenchConfig, key: str) -> dict[str, Any]:
    return asyncio.run(measure(config, key))
