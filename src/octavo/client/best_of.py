"""best_of: more samples are generated than are returned, and the most likely of them are kept (S10)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable

import msgspec

from octavo.base.params import SamplingParams
from octavo.client.generation import Completion, CompletionDelta, GenerationDelta, fold


def widened(params: SamplingParams) -> SamplingParams:
    """What the engine is asked for: all samples, with the log probabilities that rank them."""
    logprobs = params.logprobs if params.logprobs is not None else 0
    return msgspec.structs.replace(params, n=params.num_samples, best_of=None, logprobs=logprobs)


async def best_of(
    deltas: AsyncIterable[GenerationDelta], params: SamplingParams
) -> AsyncGenerator[GenerationDelta, None]:
    """One delta, of the `params.n` samples whose tokens have the highest sum of log probabilities, best first.

    Only their tokens are counted.
    """
    final = await fold(deltas)
    # The sort is stable: of equals the sample with the lower index comes first.
    ranked = sorted(final.outputs, key=_cumulative_logprob, reverse=True)[: params.n]
    outputs = [
        CompletionDelta(
            index,
            sample.text,
            sample.token_ids,
            sample.logprobs if params.logprobs is not None else None,
            sample.finish_reason,
            sample.stop_reason,
        )
        for index, sample in enumerate(ranked)
    ]
    yield GenerationDelta(
        outputs,
        final.num_prompt_tokens,
        final.num_cached_tokens,
        sum(len(output.token_ids) for output in outputs),
        True,
        final.prompt_logprobs,
        final.times,
    )


def _cumulative_logprob(sample: Completion) -> float:
    return sum(entry.logprob for entry in sample.logprobs or ())
