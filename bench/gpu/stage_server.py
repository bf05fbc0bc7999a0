"""octavo's server over HTTP: how soon it answers after its start, and what HTTP costs beside `octavo.LLM`."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Sequence
from typing import Any, Final

from servers import Server, free_port, octavo_command, running

from gpu import http_load, workloads
from gpu.context import Context
from gpu.http_load import drive
from gpu.running import settings
from gpu.workloads import Load, random_works

#: What the server needs and `octavo.LLM` may do without.
_PACKAGES: Final = ("uvicorn", "starlette", "httptools", "pydantic")
_READY_SECONDS: Final = 120.0


def start(context: Context) -> None:
    """Twice: with no kernel compiled before, and with all that the first one left."""
    if _lacks(context):
        return
    cold = context.directory / "triton-cold"
    for what, environment, goal in (
        ("8B, nothing compiled", {"TRITON_CACHE_DIR": str(cold)}, 8.0),
        ("8B, again", {"TRITON_CACHE_DIR": str(cold)}, 5.0),
    ):
        if not context.has_time(15, what):
            return
        prompt = random_works([(128, 2)], context.shape("Llama-3.1-8B").vocab, 5)[0].prompt
        begin = time.perf_counter()
        with _running(context, "Llama-3.1-8B", environment, max_model_len=4096) as server:
            ready = time.perf_counter() - begin
            http_load.first_token_ms(server.url, [prompt[: 16 if context.is_tiny else 128]])
            seconds = time.perf_counter() - begin
            note = f"ready after {ready:.2f} s; {_phases(server.log())}"
        context.row(f"start to first token: {what}", seconds, "s", note=note, goal=goal, less=True)


def server(context: Context) -> None:
    if _lacks(context):
        return
    vocab = context.shape("Qwen3-0.6B").vocab
    with _running(context, "Qwen3-0.6B", {}, max_model_len=4096) as one:
        _warm_up(context, one.url, vocab, 256)
        _many_streams(context, one.url, vocab)
        prompts = random_works([(16 if context.is_tiny else 1024, 2)] * 8, vocab, 60)
        times = sorted(http_load.first_token_ms(one.url, [work.prompt for work in prompts]))
        note = f"of 8: best {times[0]:.2f}, worst {times[-1]:.2f}"
        context.row("first token, 1,024 in, HTTP", times[len(times) // 2], "ms", note=note, goal=8.0, less=True)
        if context.has_time(15, "W3, all at once"):
            _w3(context, one.url, vocab, None)
        if context.has_time(20, "W3 at 32 a second"):
            _w3(context, one.url, vocab, 32.0)


def _warm_up(context: Context, url: str, vocab: int, streams: int) -> None:
    """Compiles, and captures the sizes that loads run through."""
    load = Load(random_works([(16, 4 + i // 2) for i in range(16 if context.is_tiny else streams)], vocab, 1))
    for _ in range(3):
        _drive(context, url, load)


def _many_streams(context: Context, url: str, vocab: int) -> None:
    """The same load as `octavo.LLM` had in the stage `small`."""
    count = 512 if context.is_quick else 1024
    load = context.sized(Load(random_works([(128, 128)] * count, vocab, 256)), vocab)
    figures = _drive(context, url, load, 256)
    rate = figures["output_tok_s"]
    context.row("256 streams, 128/128, HTTP", rate, "tok/s out", note=_told(figures))
    offline = context.figure("small", "256 streams, 128/128")
    if offline:
        context.row("HTTP against LLM.generate", 100 * rate / offline, "%", goal=92)


def rates(context: Context) -> None:
    if _lacks(context):
        return
    vocab = context.shape("Llama-3.1-8B").vocab
    with _running(context, "Llama-3.1-8B", {}, max_model_len=4096) as one:
        _warm_up(context, one.url, vocab, 128)
        for rate in (32.0, 16.0):
            if context.has_time(25, f"W3 at {rate:.0f} a second"):
                _w3(context, one.url, vocab, rate, goal=10.0 if rate == 32.0 else None)


def _w3(context: Context, url: str, vocab: int, rate: float | None, goal: float | None = None) -> None:
    """`goal`: milliseconds a token."""
    count = 500 if rate is None else round(10 * rate)
    figures = _drive(context, url, context.sized(workloads.w3(vocab, rate, count), vocab))
    what = "all at once" if rate is None else f"{rate:.0f} a second"
    context.row(f"W3, {what}", figures["output_tok_s"], "tok/s out", note=_told(figures))
    if rate is not None and figures["tpot_ms"]:
        context.row(f"W3, {what}: a token", figures["tpot_ms"]["median"], "ms", goal=goal, less=True)


def _drive(context: Context, url: str, load: Load, streams: int | None = None) -> dict[str, Any]:
    processes = 1 if context.is_tiny else 4
    figures = drive(url, load, context.directory, processes=processes, streams=streams, seconds=max(5, context.left()))
    if figures["failed"]:
        raise RuntimeError(f"{figures['failed']} requests failed: {figures['errors']}")
    return figures


def _told(figures: dict[str, Any]) -> str:
    parts = [f"{figures['completed']} requests, {figures['requests_per_s']:.1f} a second"]
    parts += [
        f"{name[:-3]} p50 {figures[name]['median']:.1f}, p99 {figures[name]['p99']:.1f} ms"
        for name in ("ttft_ms", "tpot_ms", "itl_ms")
        if figures[name]
    ]
    return "; ".join(parts)


def _lacks(context: Context) -> bool:
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        context.row("HTTP server", status="skipped", note=f"not installed: {', '.join(missing)}")
    return bool(missing)


# ---------------------------------------------------------------- the process
def _running(
    context: Context, name: str, environment: dict[str, str], **more: Any
) -> contextlib.AbstractContextManager[Server]:
    """`octavo serve` until the end of the block; its log is shown when something fails."""
    port = free_port()
    flags = [text for key, value in settings(context, **more).items() for text in _flag(key, value)]
    command = octavo_command(str(context.model(name)), port, flags)
    return running("octavo", command, port, environment, min(_READY_SECONDS, context.left()))


def _phases(log: str) -> str:
    """What the log says of how long the start took."""
    _, found, rest = log.partition("started in")
    return found + rest.partition("\n")[0]


def _flag(name: str, value: Any) -> Sequence[str]:
    flag = "--" + name.replace("_", "-")
    if value is True:
        return (flag,)
    if value is False or value is None:
        return ()
    return (flag, *map(str, value)) if isinstance(value, list | tuple) else (flag, str(value))
