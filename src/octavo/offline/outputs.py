"""What `octavo.LLM` returns: whole results, in the form that vLLM's users know."""

from __future__ import annotations

from dataclasses import dataclass, replace

from octavo.client.generation import Completion, FinalOutput
from octavo.served.model import Prepared
from octavo.text.tokenizers.tokenizer import Tokenizer
from octavo.wire.messages import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Logprob:
    """The log probability of one token at one position. `rank` 1 is the most likely."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One sample. `logprobs` has one entry a token: the sampled token, then the most likely ones, by token id."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None  # None without `SamplingParams.logprobs`
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None  # "stop", "length" or "repetition"
    stop_reason: int | str | None  # the stop string, or the stop token's id


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """One prompt and its samples, in the order of their index."""

    request_id: str
    prompt: str | None  # None for a prompt of token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    num_cached_tokens: int  # prompt tokens that were found in the prefix cache
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # None for the first token, which follows nothing
    finished: bool = True
    #: Of a model with an encoder: its input. `prompt` is then the decoder's, as far as it was given.
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None


def request_output(prepared: Prepared, text: str | None, final: FinalOutput, tokenizer: Tokenizer) -> RequestOutput:
    """The result of a turn of one prompt. `text`: of what the caller gave as ids."""
    [prompt] = prepared.prompts
    outputs = [_completion_output(sample, tokenizer) for sample in final.outputs]
    scores: list[dict[int, Logprob] | None] | None = None
    if prepared.params.prompt_logprobs is not None:
        pairs = zip(prompt.ids[1:], final.prompt_logprobs or (), strict=True)
        scores = [None, *(_position(token_id, entry, tokenizer) for token_id, entry in pairs)]
    made = RequestOutput(prompt.request.external_id, prompt.text, prompt.ids, outputs, final.num_cached_tokens, scores)
    if ids := prompt.request.encoder_token_ids:
        return replace(made, encoder_prompt=prompt.encoder_text or text, encoder_prompt_token_ids=ids)
    return replace(made, prompt=prompt.text or text)


def _completion_output(sample: Completion, tokenizer: Tokenizer) -> CompletionOutput:
    entries = sample.logprobs
    logprobs = None
    if entries is not None:
        pairs = zip(sample.token_ids, entries, strict=True)
        logprobs = [_position(token_id, entry, tokenizer) for token_id, entry in pairs]
    return CompletionOutput(
        sample.index,
        sample.text,
        sample.token_ids,
        sum(entry.logprob for entry in entries) if entries is not None else None,
        logprobs,
        sample.finish_reason,
        sample.stop_reason,
    )


def _position(token_id: int, entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[int, Logprob]:
    known = {token_id: (entry.logprob, entry.rank)}
    for rank, (top_id, value) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), 1):
        known.setdefault(top_id, (value, rank))
    return {i: Logprob(value, rank, tokenizer.decode([i], False)) for i, (value, rank) in known.items()}
