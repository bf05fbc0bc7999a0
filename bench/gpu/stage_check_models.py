"""Tiny models through the whole of octavo, beside transformers on the same device.

octavo may be no further from float32 than transformers is in bfloat16, give or take. In the batch-invariant mode the
bits of a reply depend neither on graphs, nor on company, on how the prompt was cut, or on what was cached.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from gpu import tiny_models
from gpu.context import Context
from gpu.running import exactly, settings
from octavo.offline.llm import LLM, RequestOutput

_LENGTHS: Final = (1, 17, 64, 130, 300, 517)
_NEW: Final = 24
_TOP: Final = 8
#: How much larger than transformers' the error may be.
_FACTOR: Final = 1.5
#: Errors beyond this share of the spread of the log probabilities are no rounding, whatever the format.
_QUANTIZED_BOUND: Final = 0.25
_ENGINES_AT_A_TIME: Final = 4
#: Modes of one model beside the default: name -> settings.
_MODES: Final[dict[str, dict[str, Any]]] = {
    "eager": {"enforce_eager": True},
    "fp8 cache": {"kv_cache_dtype": "fp8"},
    "fp8 weights": {"quantization": "fp8"},
    "int8 weights": {"quantization": "int8"},
}
_QUANTIZED: Final = ("fp8 cache", "fp8 weights", "int8 weights")


def run(context: Context) -> None:
    names = ["qwen3", "gemma3"] if context.is_tiny else list(tiny_models.FAMILIES)
    paths = {name: tiny_models.make(context.directory / "tiny", name) for name in names}
    jobs: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in names]
    if not context.is_tiny:
        has_fp8 = torch.cuda.get_device_capability() >= (8, 9)
        for mode, more in _MODES.items():
            if "fp8" in mode and not has_fp8:
                context.row(f"qwen3, {mode}", status="skipped", note="the card has no fp8")
            else:
                jobs.append((f"qwen3, {mode}", more))
    # The engines load one beside the other, each in a process of its own.
    with ThreadPoolExecutor(1 if context.is_tiny else _ENGINES_AT_A_TIME) as pool:
        invariant = pool.submit(_invariance, context, paths["qwen3"])
        futures = {what: pool.submit(_replies, context, paths[what.split(",")[0]], more) for what, more in jobs}
        for what, future in futures.items():
            try:
                outputs = future.result()
            except Exception as error:  # noqa: BLE001  # becomes a row
                context.check(what, False, f"{type(error).__name__}: {error}")
                continue
            name = what.split(",")[0]
            _compare(context, what, paths[name], outputs, is_quantized=what.rpartition(", ")[2] in _QUANTIZED)
        try:
            invariant.result()
        except Exception as error:  # noqa: BLE001  # becomes a row
            context.check("invariance", False, f"{type(error).__name__}: {error}")


def _prompts(seed: int = 1, lengths: Sequence[int] = _LENGTHS) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(tiny_models.VOCAB) for _ in range(length)] for length in lengths]


def _llm(context: Context, path: Path, more: dict[str, Any]) -> LLM:
    given = settings(context, load_format="auto", kv_cache_memory_bytes=256 << 20, max_model_len=2048, **more)
    return LLM(str(path), **given)


def _replies(context: Context, path: Path, more: dict[str, Any]) -> list[RequestOutput]:
    with _llm(context, path, more) as llm:
        return _generate(llm, _prompts())


def _generate(llm: LLM, prompts: list[list[int]]) -> list[RequestOutput]:
    return llm.generate(prompts, exactly(_NEW, logprobs=_TOP, prompt_logprobs=_TOP), use_tqdm=False)


# ---------------------------------------------------------------- beside transformers
@dataclass(frozen=True)
class _Errors:
    """Of log probabilities, against float32."""

    mean: float
    most: float


def _compare(context: Context, what: str, path: Path, outputs: list[RequestOutput], *, is_quantized: bool) -> None:
    if context.is_tiny:
        outputs = outputs[:4]
    sequences = [output.prompt_token_ids + output.outputs[0].token_ids for output in outputs]
    exact = tiny_models.log_probs(path, context.device, torch.float32, sequences)
    rounded = tiny_models.log_probs(path, context.device, torch.bfloat16, sequences)
    ours, theirs, behind, is_finite = [], [], 0.0, True
    for output, want, other in zip(outputs, exact, rounded, strict=True):
        scores = [*(output.prompt_logprobs or [])[1:], *(output.outputs[0].logprobs or [])]
        is_finite = is_finite and len(scores) == len(want) - 1
        for position, entries in enumerate(scores):
            for token, entry in (entries or {}).items():
                ours.append(entry.logprob - float(want[position, token]))
                theirs.append(float(other[position, token] - want[position, token]))
        behind = max(behind, _behind(want, len(output.prompt_token_ids), output.outputs[0].token_ids))
    spread = float(torch.cat(exact).std())
    mine, other_errors = _errors(ours), _errors(theirs)
    is_finite = is_finite and bool(torch.tensor(ours).isfinite().all())
    if is_quantized:
        is_good = mine.mean <= _QUANTIZED_BOUND * spread
    else:
        is_good = mine.mean <= _FACTOR * other_errors.mean + 1e-3 and mine.most <= 2 * other_errors.most + 0.01
        is_good = is_good and behind <= 2 * (mine.most + other_errors.most) + 0.01
    note = (
        f"mean error {mine.mean:.4f}, most {mine.most:.3f}; transformers {other_errors.mean:.4f}, "
        f"{other_errors.most:.3f}; spread {spread:.2f}; a greedy token is behind the best by {behind:.3f} at most"
    )
    context.check(f"{what}: log probabilities", is_good and is_finite, note, mine.mean / spread, "of spread")


def _errors(values: list[float]) -> _Errors:
    sizes = torch.tensor(values).abs()
    return _Errors(float(sizes.mean()), float(sizes.max()))


def _behind(want: Tensor, prompt_len: int, token_ids: list[int]) -> float:
    """By how much, in float32's eyes, greedy tokens were less likely than the best ones."""
    at = want[prompt_len - 1 : prompt_len - 1 + len(token_ids)]
    chosen = at.gather(1, torch.tensor(token_ids)[:, None])[:, 0]
    return float((at.max(dim=-1).values - chosen).max())


# ---------------------------------------------------------------- the same bits
def _invariance(context: Context, path: Path) -> None:
    prompts, others = _prompts(), _prompts(2, [23 + 11 * i for i in range(40)])
    with _llm(context, path, {"batch_invariant": True}) as llm:
        alone = [_bits(_generate(llm, [prompt])[0]) for prompt in prompts]
        cached = [_bits(_generate(llm, [prompt])[0]) for prompt in prompts]
        company = [_bits(output) for output in _generate(llm, [*others, *prompts])[len(others) :]]
    _equal(context, "the same bits with a cached prompt", alone, cached)
    _equal(context, "the same bits alone and in company", alone, company)
    # Small steps cut the longer prompts.
    more = {"batch_invariant": True, "max_num_batched_tokens": 256, "max_num_prefill_tokens": 96}
    with _llm(context, path, more | {"enforce_eager": True}) as llm:
        eager = [_bits(output) for output in _generate(llm, prompts)]
    _equal(context, "the same bits without graphs, in chunks", alone, eager)
    # Where no log probabilities of the prompts are asked for, their chunks are captured, and replayed the second time.
    with _llm(context, path, more | {"enable_prefix_caching": False}) as llm:
        for _ in range(2):
            outputs = llm.generate(prompts, exactly(_NEW, logprobs=_TOP), use_tqdm=False)
    _equal(context, "the same bits in captured chunks", [each[:2] for each in alone], [_bits(o)[:2] for o in outputs])


def _bits(output: RequestOutput) -> tuple[Any, ...]:
    return tuple(output.outputs[0].token_ids), output.outputs[0].logprobs, output.prompt_logprobs


def _equal(context: Context, what: str, one: list[Any], other: list[Any]) -> None:
    lengths = [n for n, a, b in zip(_LENGTHS, one, other, strict=True) if a != b]
    context.check(what, not lengths, f"differing prompts: of length {lengths}" if lengths else f"{len(one)} replies")
