"""Guesses at the next tokens of a request, computed in one step and verified by sampling at each of them.

A token's draw depends on its request's seed and its position alone. So the tokens that are sampled behind a right
guess are those that would have been sampled without one, greedy or not, and those behind a wrong one are dropped:
whatever a drafter proposes, the text is the same, bit for bit, and only the number of steps is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from octavo.core.request import Request

if TYPE_CHECKING:
    from octavo.core.grammar.structured import Matcher


class Drafter(Protocol):
    """Called by the scheduler, between two steps: it must not take long, nor change the request."""

    def wants(self, request: Request) -> bool:
        """Whether it may propose tokens for this request: asked once, when it arrives. Such a request takes part in no
        step that is planned ahead of its answer: what it is to guess at depends on that."""
        ...

    def propose(self, request: Request) -> Sequence[int]:
        """Guesses at the tokens that follow `request.token_ids`: as many as it likes, any ids, or none."""
        ...

    def accepted(self, request: Request, num_proposed: int, num_accepted: int) -> None:
        """Of a proposal `num_proposed` tokens were computed, and the first `num_accepted` of them were right; they are
        part of `request.token_ids` now. The request may have ended."""
        ...


def draft_for(
    request: Request, drafter: Drafter, room: int, vocab_size: int, *, jumps: bool
) -> tuple[list[int], list[Matcher]]:
    """At most `room` draft tokens for a request of a step, none of them at its end or beyond, and its place in its
    grammar after each of them, if it has one. `jumps`: tokens that the grammar dictates come without sampling."""
    num_tokens = len(request.token_ids)
    room = min(room, request.limit_tokens - 1 - num_tokens)
    # A prompt's last token is computed as part of the prompt: the first guess stands behind a token that follows it.
    if room <= 0 or request.num_expected_tokens or num_tokens == request.num_prompt_tokens:
        return [], []
    return cut_draft(request, drafter.propose(request)[:room], vocab_size, jumps=jumps)


def cut_draft(
    request: Request, proposed: Sequence[int], vocab_size: int, *, jumps: bool
) -> tuple[list[int], list[Matcher]]:
    """The beginning of a proposal that is worth verifying, and the request's place in its grammar after each of its
    tokens, if it has a grammar.

    It ends before what is no token, before what ends the request if it is right, before what the grammar does not
    admit, and (`jumps`) before a token after which the grammar dictates the next ones: those come without sampling,
    and may be others than the ones that would be sampled.
    """
    draft: list[int] = []
    places: list[Matcher] = []
    place = request.matcher
    for token_id in proposed:
        if not 0 <= token_id < vocab_size or token_id in request.stop_ids:
            break
        if place is not None:
            place = place.copy()
            if place.advance(token_id) is not None or place.is_complete:
                break
            if jumps and place.jump(1, request.stop_ids):
                break
            places.append(place)
        draft.append(token_id)
    return draft, places
