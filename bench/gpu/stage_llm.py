"""Whole workloads through `octavo.LLM`, one model a stage; the rows in order of worth."""

from __future__ import annotations

from typing import Any, Final

from gpu import roofline, workloads
from gpu.context import Context
from gpu.roofline import Lengths, Precision
from gpu.running import Model, exactly, lengths_of
from gpu.workloads import Load, Work

_FP8_KV: Final = Precision(kv_bytes=1.0)
_FP8: Final = Precision(weight_bytes=1.0, is_fp8=True)
#: The load by which modes are compared: W2 with short replies.
SHORT_W2: Final = "W2, 256 out"


# ---------------------------------------------------------------- Qwen3-0.6B
def small(context: Context) -> None:
    with Model(context, "Qwen3-0.6B", max_model_len=4096) as model:
        model.warm_up(256)
        rounds = 1 if context.is_quick else 2
        model.throughput("W1", workloads.w1(), rounds, goal=0.70, against="here", note="temperature 0.6")
        alone(model, goal=0.50)
        first_token(model)
        _as_asked(model)
        for streams in (8, 64):
            model.throughput(f"W9: {streams} streams, 128/128", workloads.w9(model.vocab, streams))
        if context.has_time(12, "256 streams, 128/128"):
            load = workloads.random_works([(128, 128)] * (512 if context.is_quick else 1024), model.vocab, 256)
            model.throughput("256 streams, 128/128", Load(load), note="as over HTTP in the stage server")


def _as_asked(model: Model) -> None:
    """Draws as the model's generation_config.json asks for them, beside greedy ones in other rows."""
    for streams in (1, 64):
        works = workloads.random_works([(128, 128)] * streams, model.vocab, 300 + streams)
        load = Load(works, temperature=0.6, top_k=20, top_p=0.95)
        model.throughput(f"W9: {streams} streams, top_k 20, top_p 0.95", load, note="temperature 0.6")


def gemma(context: Context) -> None:
    with Model(context, "Gemma-3-1B", max_model_len=4096) as model:
        model.warm_up(64)
        alone(model)
        model.throughput("64 streams, 128/256", workloads.w9(model.vocab, 64, 128, 256), note="windows not counted")


def alone(model: Model, goal: float | None = None, context_len: int = 128, output_len: int = 512) -> float:
    """One stream: the share of the bandwidth with which a step reads the weights (W9). Returns a step's seconds."""
    work = model.sized(workloads.w9(model.vocab, 1, context_len, output_len)).works
    seconds, _ = model.step_seconds(work, work[0].output_len)
    shares = model.context.share(lambda peaks: roofline.decode_share(model.shape, seconds, peaks, model.precision))
    note = f"{1000 * seconds:.3f} ms a step, {work[0].output_len} tokens behind {len(work[0].prompt)}"
    goals: dict[str, Any] = {} if goal is None else {"goal": goal, "against": "here"}
    model.context.row(f"W9: {model.name} alone", 1 / seconds, "tok/s out", note=note, **shares, **goals)
    return seconds


def first_token(model: Model) -> None:
    """Prompts of 1,024 that nothing knows, one after the other."""
    times = []
    for seed in range(5):
        load = model.sized(Load(workloads.random_works([(1024, 1)], model.vocab, 50 + seed)))
        times.append(model.generate(Load([Work(load.works[0].prompt, 1)]))[0])
    best = sorted(times)[len(times) // 2]
    model.context.row("first token, 1,024 in, alone", 1000 * best, "ms", note="LLM.generate, no HTTP; median of 5")


# ---------------------------------------------------------------- Llama-3.1-8B
def llama(context: Context) -> None:
    with Model(context, "Llama-3.1-8B", max_model_len=36_864) as model:
        model.warm_up(16)
        alone(model, goal=0.85)
        _prefill_heavy(model)
        kv_slope(model, goal=0.88)
        if context.has_time(18, "W4 decode-heavy"):
            count = 256 if context.is_quick else 500
            load = workloads.w4(model.vocab, is_prefill_heavy=False, num_requests=count, output_len=128)
            model.throughput("W4 decode-heavy, 128 out", load, note="256 out in the source")
        if context.has_time(15, "W7"):
            prefixes(model, 24 if context.is_quick else 48)
        if context.has_time(20, "W6, 8 at once"):
            _long(model)


def _prefill_heavy(model: Model) -> None:
    """W4: the rate of arithmetic of prompts, in the whole."""
    count = 256 if model.context.is_quick else 500
    load = model.sized(workloads.w4(model.vocab, is_prefill_heavy=True, num_requests=count))
    seconds = model.throughput("W4 prefill-heavy", load)
    rate = roofline.matrix_flops(model.shape, lengths_of(load)) / seconds
    shares = model.context.flops_share(rate)
    model.context.row("W4 prefill-heavy, matrices", rate / 1e12, "TFLOP/s", goal=0.68, against="here", **shares)


def kv_slope(model: Model, goal: float) -> None:
    """W6: by how much each token of context lengthens a step of one stream."""
    context = model.context
    points: list[tuple[float, float]] = []
    lengths = (64, 128, 256) if context.is_tiny else (1024, 4096, 8192, 16_384, 32_768)
    steps = 8 if context.is_tiny else 65
    for length in lengths:
        if context.left() < 8 and len(points) > 2:
            break
        work = workloads.random_works([(length, steps)], model.vocab, length)
        seconds, _ = model.step_seconds(work, steps)
        points.append((length + steps / 2, seconds))
    slope, intercept = roofline.line_fit(points)
    note = f"ITL = {1e3 * intercept:.3f} ms + {1e9 * slope:.3f} ns a token; " + ", ".join(
        f"{length:.0f}: {1e3 * seconds:.3f}" for length, seconds in points
    )
    shares = context.share(lambda peaks: roofline.kv_slope_share(model.shape, slope, peaks, model.precision))
    rate = model.shape.kv_values * model.precision.kv_bytes / slope / 1e9
    context.row("W6: KV read", rate, "GB/s", note=note, goal=goal, against="here", **shares)


def prefixes(model: Model, count: int) -> None:
    """W7. The common part is computed before, as it is in a server that has been running."""
    base = 0.0
    for share in (0.0, 0.25, 0.5, 0.75):
        load = model.sized(workloads.w7(model.vocab, share, count))
        first = load.works[0]
        if first.shared:
            model.generate(Load([Work(first.prompt[: first.shared + 1], 1)]))
        lengths = [Lengths(len(w.prompt), w.output_len, w.shared) for w in load.works]
        seconds = model.throughput(f"W7, {share:.0%} shared", load, lengths=lengths)
        base = base or seconds
    goals: dict[str, Any] = {"goal": 3.0}
    model.context.row("W7, 75 % against none", base / seconds, "x", **goals)


def _long(model: Model) -> None:
    """W6 as a load, shortened: 8 requests at once instead of 150 at a concurrency of 8."""
    load = workloads.w6(model.vocab, 8, 256)
    model.throughput("W6, 8 at once, 256 out", load, note="8 of 150 requests, 256 of 2,000 out")


def uniform(context: Context) -> None:
    with Model(context, "Llama-3.1-8B", max_model_len=5120) as model:
        model.warm_up(64)
        count = 64 if context.is_quick else 256
        load = workloads.w8(model.vocab, count)
        model.throughput("W8 offline", load, note=f"{count} of 1,000 requests")


def fp8_kv(context: Context) -> None:
    with Model(context, "Llama-3.1-8B", _FP8_KV, max_model_len=36_864, kv_cache_dtype="fp8") as model:
        model.warm_up(1)
        kv_slope(model, goal=0.82)
        alone(model)
        if context.has_time(20, "W6, 8 at once"):
            _long(model)


def fp8(context: Context) -> None:
    with Model(context, "Llama-3.1-8B", _FP8, max_model_len=4096, quantization="fp8") as model:
        model.warm_up(64)
        alone(model)
        if context.has_time(20, "W5 1000/1000"):
            count, out = (256, 128) if context.is_quick else (256, 256)
            load = workloads.w5(model.vocab, 1000, out, count)
            note = f"1000/1000 and 3,000 requests in the source; {out} out here"
            model.throughput(f"W5 1000/{out}, fp8 weights", load, note=note)


# ---------------------------------------------------------------- Qwen3-8B
def qwen(context: Context) -> None:
    with Model(context, "Qwen3-8B", max_model_len=4096) as model:
        model.warm_up(256)
        _short_w2(model)
        out = 512 if context.is_quick else 1024
        if context.has_time(45 if out == 1024 else 28, f"W2, {out} out"):
            load = workloads.w2(model.vocab, output_len=out)
            model.throughput(f"W2, {out} out", load, goal=0.80, against="here")


def _short_w2(model: Model) -> float:
    return model.throughput(SHORT_W2, workloads.w2(model.vocab, output_len=256), note="1,024 out in the source")


def invariant(context: Context) -> None:
    """The cost of the mode, and that it holds what it promises on a model of full size."""
    with Model(context, "Qwen3-8B", max_model_len=4096, batch_invariant=True) as model:
        model.warm_up(256)
        _same_alone_and_in_company(model)
        seconds = _short_w2(model)
        tokens = model.sized(workloads.w2(model.vocab, output_len=256)).num_output_tokens
        plain = context.figure("qwen", SHORT_W2)
        if plain is not None:
            slower = seconds * plain / tokens - 1
            context.row("slower than the default, W2", 100 * slower, "%", goal=10, less=True)
        alone(model)


def _same_alone_and_in_company(model: Model) -> None:
    """Log probabilities and all, of replies alone, and among many others of other lengths."""
    works = model.sized(Load(workloads.random_works([(97, 24), (260, 24), (1000, 24)], model.vocab, 77))).works
    others = model.sized(Load(workloads.random_works([(50 + 17 * i, 40) for i in range(48)], model.vocab, 78))).works

    def replies(given: list[Work]) -> list[Any]:
        params = [exactly(work.output_len, logprobs=3) for work in given]
        found = model.llm.generate([work.prompt for work in given], params, use_tqdm=False)
        return [(o.outputs[0].token_ids, o.outputs[0].logprobs) for o in found]

    single = [replies([work])[0] for work in works]
    together = replies([*others, *works])[len(others) :]
    differing = sum(one != other for one, other in zip(single, together, strict=True))
    note = f"{differing} of {len(works)} replies differ"
    model.context.check("the same bits alone and in company", differing == 0, note)
