"""transformers on the same card with a model of the same shape: continuous batching, and compiled decoding."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
import transformers

from gpu import roofline, workloads
from gpu.context import Context
from gpu.running import lengths_of
from gpu.workloads import Load, random_works

NAME: Final = "Qwen3-0.6B"


def _model(context: Context, attention: str) -> Any:
    """Random weights, made on the device."""
    config = transformers.AutoConfig.from_pretrained(context.model(NAME))
    dtype = torch.float32 if context.is_tiny else torch.bfloat16
    with torch.device(context.device):
        make: Any = transformers.AutoModelForCausalLM.from_config
        model = make(config, dtype=dtype, attn_implementation=attention)
    return model.eval()


def generate(context: Context) -> None:
    """`generate_batch`. Its replies have one length for all, so W1's prompts get W1's mean."""
    load = context.sized(workloads.w1(), context.shape(NAME).vocab)
    output_len = 8 if context.is_tiny else (128 if context.is_quick else 256)
    prompts = [work.prompt for work in load.works]
    model = _model(context, "sdpa")
    config = transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=output_len, eos_token_id=-1, pad_token_id=0, use_cache=True
    )

    def run(given: list[list[int]]) -> tuple[float, int]:
        start = time.perf_counter()
        outputs = model.generate_batch(inputs=given, generation_config=config, progress_bar=False)
        seconds = time.perf_counter() - start
        return seconds, sum(len(output.generated_tokens) for output in outputs.values())

    run(prompts[:8])
    seconds, tokens = run(prompts)
    equal = Load([workloads.Work(prompt, output_len) for prompt in prompts])
    lengths = lengths_of(equal)
    shares = context.share(
        lambda peaks: roofline.ar_seconds(context.shape(NAME), lengths, peaks, steps=output_len) / seconds
    )
    note = (
        f"{len(prompts)} requests, in {equal.num_prompt_tokens:,}, out {tokens:,} ({output_len} each), with its warm-up"
    )
    context.row("generate_batch, W1's prompts", tokens / seconds, "tok/s out", note=note, **shares)


def compiled(context: Context) -> None:
    """One stream, a static cache, the forward pass compiled: what `generate` does of itself when it is given such a
    cache. One cache for all runs: another size would be compiled again."""
    output_len = 8 if context.is_tiny else 256
    prompt = random_works([(128, 1)], context.shape(NAME).vocab, 9)[0].prompt
    model = _model(context, "sdpa")
    ids = torch.tensor([prompt], device=context.device)

    cache: Any = transformers.StaticCache(config=model.config, max_cache_len=len(prompt) + output_len)

    def seconds(count: int) -> float:
        cache.reset()
        start = time.perf_counter()
        with torch.no_grad():
            found = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False,
                pad_token_id=0, eos_token_id=None, past_key_values=cache, disable_compile=context.is_tiny,
            )  # fmt: skip
        if context.device == "cuda":
            torch.cuda.synchronize()
        assert found.shape[1] == len(prompt) + count
        return time.perf_counter() - start

    begin = time.perf_counter()
    for _ in range(2):
        seconds(output_len)
    warm = time.perf_counter() - begin
    step = min(seconds(output_len) - seconds(2) for _ in range(3)) / (output_len - 2)
    shares = context.share(lambda peaks: roofline.decode_share(context.shape(NAME), step, peaks))
    note = f"{1000 * step:.3f} ms a step; {warm:.0f} s to compile and warm up"
    context.row("compiled, one stream", 1 / step, "tok/s out", note=note, **shares)
