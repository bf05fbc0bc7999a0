"""`octavo bench throughput` and `octavo bench latency`: a model without a server, through `octavo.LLM`."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from octavo.base.params import SamplingParams
from octavo.bench.config import LatencyConfig, ThroughputConfig
from octavo.bench.datasets import check_dataset, prompts, random_ids
from octavo.bench.limits import Limits, best_of, measure_limits
from octavo.bench.machine import stamp
from octavo.bench.report import bandwidth, result, table
from octavo.bench.roofline import roofline_seconds, step_weight_bytes
from octavo.bench.stats import spread_ms
from octavo.offline.llm import LLM, RequestOutput
from octavo.wire.messages import EngineInfo

#: Of the times of whole batches, which are few.
PERCENTILES = (10, 25, 50, 75, 90, 99)


def throughput(config: ThroughputConfig, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All requests given at once. `settings` are those of `octavo.LLM`; raises `StartupError`, `RequestError`."""
    check_dataset(config)
    machine, rng = stamp(), random.Random(settings.get("seed", 0))
    with LLM(model, **settings) as llm:
        make = partial(random_ids, vocab_size=llm.info.vocab_size)
        given = prompts(config, config.num_prompts, rng, make=make, num_tokens=lambda t: len(llm.tokenizer.encode(t)))
        params = [_exactly(prompt.output_len) for prompt in given]
        llm.generate(random_ids(rng, 8, llm.info.vocab_size), _exactly(2), use_tqdm=False)
        start = time.perf_counter()
        outputs = llm.generate([prompt.content for prompt in given], params, use_tqdm=config.progress)
        seconds = time.perf_counter() - start
        info = llm.info
    # With the engine's process gone, its threads leave the memory to this one.
    limits = measure_limits(settings.get("num_threads"))
    prompt_tokens = sum(len(output.prompt_token_ids) for output in outputs)
    output_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    figures = {
        "duration_s": round(seconds, 3),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "cached_tokens": sum(output.num_cached_tokens for output in outputs),
        "requests_per_s": round(len(outputs) / seconds, 3),
        "output_tok_s": round(output_tokens / seconds, 2),
        "total_tok_s": round((prompt_tokens + output_tokens) / seconds, 2),
        "roofline_share": None if limits is None else round(_roofline(outputs, info, limits) / seconds, 3),
    }
    return dict(result("throughput", config, machine, limits, model=model, engine=_engine(info), **figures))


def _roofline(outputs: list[RequestOutput], info: EngineInfo, limits: Limits) -> float:
    lengths = [
        (len(o.prompt_token_ids) - o.num_cached_tokens, len(o.prompt_token_ids), len(o.outputs[0].token_ids))
        for o in outputs
    ]
    return roofline_seconds(info, limits, lengths)


def throughput_text(document: Mapping[str, Any]) -> str:
    names = ("requests_per_s", "total_tok_s", "output_tok_s", "prompt_tokens", "output_tokens", "duration_s")
    head = ("req/s", "total tok/s", "out tok/s", "prompt tokens", "output tokens", "s")
    lines = [table(head, [[document[name] for name in names]])]
    if document["limits"] is not None:
        share = f"{document['roofline_share']:.0%} of what the machine could do"
        lines.append(f"{share}; {Limits(**document['limits'])}")
    return "\n".join(lines)


def latency(config: LatencyConfig, model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Batches one after the other, each with new prompts. Raises `StartupError`, `RequestError`.

    A batch is run once for one token and once for all: the difference is the time of decoding.
    """
    machine, rng = stamp(), random.Random(settings.get("seed", 0))
    before = measure_limits(settings.get("num_threads"))
    with LLM(model, **settings) as llm:
        run = partial(_batch_seconds, llm, rng, config)
        for _ in range(config.num_iters_warmup):
            run(config.output_len)
        first, whole = [], []
        for _ in tqdm(range(config.num_iters), desc="batches", disable=None if config.progress else True):
            first.append(run(1))
            whole.append(run(config.output_len))
        files: list[str] = []
        if config.profile:
            llm.start_profile(config.profile_result_dir)
            run(config.output_len)
            files = llm.stop_profile()
        info = llm.info
    # Others use the memory too: what it gave before or after is nearer to what the batches could have had.
    limits = best_of(before, measure_limits(settings.get("num_threads")))
    figures = latency_figures(config, first, whole, step_weight_bytes(info, config.batch_size), limits)
    if files:
        figures["profile_files"] = files
    return dict(result("latency", config, machine, limits, model=model, engine=_engine(info), **figures))


def _batch_seconds(llm: LLM, rng: random.Random, config: LatencyConfig, output_len: int) -> float:
    batch = [random_ids(rng, config.input_len, llm.info.vocab_size) for _ in range(config.batch_size)]
    start = time.perf_counter()
    llm.generate(batch, _exactly(output_len), use_tqdm=False)
    return time.perf_counter() - start


def latency_figures(
    config: LatencyConfig, first: list[float], whole: list[float], weight_bytes: float, limits: Limits | None
) -> dict[str, Any]:
    to_first = statistics.median(first)
    # Two noisy times: of a few tokens on a busy machine the difference may come out as nothing.
    step = max(0.0, statistics.median(whole) - to_first) / (config.output_len - 1)
    figures: dict[str, Any] = {
        "latency_ms": spread_ms(whole, PERCENTILES),
        "first_token_ms": spread_ms(first, PERCENTILES),
        "prompt_tok_s": round(config.batch_size * config.input_len / to_first, 2),
        "step_ms": round(1000 * step, 3),
        "decode_tok_s": round(config.batch_size / step, 2) if step else None,
        "weights_gb_s": None,
        "memory_share": None,
    }
    if step:  # a step reads weights once, however many streams it serves
        figures["weights_gb_s"] = round(weight_bytes / step / 1e9, 2)
        if limits is not None:
            figures["memory_share"] = round(figures["weights_gb_s"] / limits.memory_read_gb_s, 3)
    return figures


def latency_text(document: Mapping[str, Any]) -> str:
    """Times are in milliseconds."""
    names = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")
    rows = [
        [what, *(document[name][figure] for figure in names)]
        for what, name in (("whole batch", "latency_ms"), ("first token", "first_token_ms"))
    ]
    lines = [table(("", *names), rows), f"prompt: {document['prompt_tok_s']:.1f} tok/s, to the first token"]
    if document["decode_tok_s"] is not None:
        limits = None if document["limits"] is None else Limits(**document["limits"])
        lines.append(f"decode: {document['decode_tok_s']:.1f} tok/s, {document['step_ms']:.2f} ms a step")
        lines.append(f"a step reads the weights at {bandwidth(document['weights_gb_s'], limits)}")
    lines += [f"profile: {file}" for file in document.get("profile_files", ())]
    return "\n".join(lines)


def _exactly(num_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)


def _engine(info: EngineInfo) -> dict[str, Any]:
    """What decides the speed."""
    return {
        "device": info.device, "model_type": info.model_type, "quantization": info.quantization, "dtype": info.dtype,
        "kv_cache_dtype": info.kv_cache_dtype, "weight_bytes": info.weight_bytes, "max_num_seqs": info.max_num_seqs,
        "max_num_batched_tokens": info.max_num_batched_tokens,
        "max_num_prefill_tokens": info.max_num_prefill_tokens, "load_seconds": info.load_seconds,
    }  # fmt: skip
