"""What a request makes of the tokens that a step gave it."""

from __future__ import annotations

from dataclasses import dataclass, field

from octavo.core.request import Request
from octavo.wire.messages import EngineCoreOutput, TokenLogprobs


@dataclass(slots=True)
class Progress:
    """`token_ids` were appended to the request; those behind the first `num_sampled` were dictated by its grammar.

    `error`: the grammar failed at a token that was sampled behind them, and the request cannot go on.
    """

    token_ids: list[int] = field(default_factory=list)
    num_sampled: int = 0
    finish_reason: str | None = None
    stop_reason: int | None = None
    is_complete: bool = False  # the grammar is at its end
    error: str | None = None


def take_tokens(request: Request, sampled: list[int], *, jumps: bool) -> Progress:
    """Append the sampled tokens, as far as they do not end the request before. `jumps`: and behind them those that its
    grammar dictates, which the following steps compute like any others."""
    progress, matcher = Progress(), request.matcher
    for token_id in sampled:
        request.token_ids.append(token_id)
        progress.finish_reason, progress.stop_reason = request.stop_of(token_id)
        if matcher is not None and progress.finish_reason != "stop":
            progress.error = matcher.advance(token_id)
            if progress.error is not None:
                progress.finish_reason = progress.stop_reason = None
                return progress
            if matcher.is_complete:
                progress.finish_reason, progress.is_complete = "stop", True
        progress.token_ids.append(token_id)
        progress.num_sampled += 1
        if progress.finish_reason is not None:
            return progress
        if jumps and matcher is not None:
            room = request.limit_tokens - len(request.token_ids)
            if dictated := matcher.jump(room, request.stop_ids):
                assert progress.num_sampled == len(sampled), "a draft goes on where the grammar dictates: `cut_draft`"
                request.token_ids += dictated
                request.unsent_token_ids = dictated
                progress.token_ids += dictated
                progress.finish_reason, progress.stop_reason = request.stop_of(dictated[-1])
                return progress
    return progress


def output_of(
    request: Request,
    progress: Progress,
    logprobs: list[TokenLogprobs] | None,
    prompt_logprobs: list[TokenLogprobs] | None,
) -> EngineCoreOutput:
    """What the caller is told; `logprobs`: of the tokens that the step sampled, of which some may come too late."""
    is_first, request.first_output_sent = not request.first_output_sent, True
    return EngineCoreOutput(
        request.request_id,
        progress.token_ids,
        progress.finish_reason,
        progress.stop_reason,
        None if logprobs is None else logprobs[: progress.num_sampled],
        num_cached_tokens=request.num_cached_tokens if is_first else 0,
        scheduled_time=request.scheduled_time if is_first else 0.0,
        prompt_logprobs=prompt_logprobs,
        is_complete=progress.is_complete,
        step_seconds=request.step_seconds,
    )
