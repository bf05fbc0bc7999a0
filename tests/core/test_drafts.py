"""Drafts by example: what is scheduled, what is kept, and that the text is the one without."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from core.fake import VOCAB_SIZE, Guesser, Jumper, alone, dictated_after, logprobs_of
from core.test_engine_core import Engine
from core.test_scheduler import World, prompt
from octavo.base.config import EngineConfig
from octavo.base.params import SamplingParams
from octavo.core.drafts import cut_draft
from octavo.core.engine_core import EngineCore
from octavo.core.request import Request, sampling_seed_of
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.messages import AddRequest


class Drafted(World):
    def __init__(self, ways: Sequence[str] = ("right",), **changes: object) -> None:
        super().__init__(**changes)  # type: ignore[arg-type]
        self.drafter = Guesser(ways)
        self.scheduler = Scheduler(self.config, self.info, self.drafter)

    def seed(self, request_id: int) -> int:
        return self.scheduler.requests[request_id].sampling_seed


def test_right_guesses_are_kept_and_the_token_behind_them_too() -> None:
    world = Drafted(["long"])
    world.add(1, prompt(0, 5), max_tokens=9, logprobs=2)
    seed = world.seed(1)
    assert world.scheduled(world.step()) == {1: 5}
    plan = world.step()
    # Token 9 ends the request: 7 guesses, and the token that is known.
    assert plan.num_scheduled_tokens == {0: 8} and len(plan.cached_requests[0].draft_token_ids) == 7
    assert not world.scheduler.has_work
    assert world.tokens(1) == alone(world.messages[1], 9, seed)
    assert world.outputs[1][-1].logprobs == [logprobs_of(token, 2) for token in world.tokens(1)[1:]]
    assert world.stops(1) == ("length", None)
    assert world.drafter.told == [(7, 7)]
    assert world.scheduler.stats().num_generation_tokens == 9


def test_of_a_wrong_guess_nothing_stays_but_the_token_that_was_sampled() -> None:
    world = Drafted(["wrong"])
    world.add(1, prompt(0, 5), max_tokens=9)
    seed = world.seed(1)
    world.step()
    world.step()
    request = world.scheduler.requests[1]
    assert (request.num_tokens, request.num_computed_tokens, request.draft_token_ids) == (7, 6, [])
    world.run()
    assert world.tokens(1) == alone(world.messages[1], 9, seed)
    assert all(accepted == 0 for _, accepted in world.drafter.told)


def test_drafts_get_what_prompts_leave_of_a_step() -> None:
    world = Drafted(["long"], max_num_batched_tokens=12)
    world.add(1, prompt(0, 5), max_tokens=40)
    world.step()
    world.add(2, prompt(20, 9), max_tokens=2)
    assert world.scheduled(plan := world.step()) == {1: 3, 2: 9}
    assert len(plan.cached_requests[0].draft_token_ids) == 2


def test_no_one_gives_up_blocks_for_a_guess() -> None:
    world = Drafted(["long"], num_kv_blocks=5, block_size=4, caching=False)
    world.add(1, prompt(0, 4), max_tokens=9)
    world.add(2, prompt(9, 4), max_tokens=3)
    seeds = {i: world.seed(i) for i in (1, 2)}
    world.step()
    # Two blocks each: the guesses fill the last of the first request, and get no third.
    assert world.step().num_scheduled_tokens == {0: 4, 1: 2}
    world.run()
    assert world.scheduler.stats().num_preemptions == 0
    assert {i: world.tokens(i) for i in (1, 2)} == {
        i: alone(world.messages[i], 9 - 6 * (i == 2), seeds[i]) for i in seeds
    }


def test_a_prompts_last_token_has_no_draft_behind_it() -> None:
    """It is computed as part of the prompt, also where a step holds only that token."""
    world = Drafted(["right"], max_num_batched_tokens=4)
    world.add(1, prompt(0, 5), max_tokens=9)
    world.step()
    assert world.scheduled(world.step()) == {1: 1}
    assert world.scheduled(world.step())[1] > 1


def test_steps_are_planned_ahead_where_nobody_who_runs_is_drafted_for() -> None:
    world = Drafted()
    world.add(4, prompt(0, 3), max_tokens=30)  # not wanted by the drafter
    world.step()
    world.scheduler.schedule()
    assert world.scheduler.can_plan_ahead
    world = Drafted()
    world.add(1, prompt(0, 3), max_tokens=30)
    world.step()
    world.scheduler.schedule()
    assert not world.scheduler.can_plan_ahead


def test_a_few_who_must_see_their_token_first_are_left_out_of_the_step_ahead_and_the_others_are_not() -> None:
    world = Drafted()
    for request_id in (1, 4, 9, 14):
        world.add(request_id, prompt(10 * request_id, 3), max_tokens=30)
    world.step()
    scheduler = world.scheduler
    assert set(world.scheduled(scheduler.schedule())) == {1, 4, 9, 14}
    assert scheduler.can_plan_ahead
    assert set(world.scheduled(scheduler.schedule())) == {4, 9, 14}
    scheduler.abort([14])  # one of three is more than a few
    assert not scheduler.can_plan_ahead


def request_of(matcher: Jumper | None, **params: object) -> Request:
    message = AddRequest(1, [1, 2], SamplingParams(**params), (9,))  # type: ignore[arg-type]
    return Request(message, limit_tokens=50, sampling_seed=1, arrival_number=1, matcher=matcher)


@pytest.mark.parametrize(
    ("proposed", "draft"),
    [
        ([4, 5, 7], [4, 5, 7]),
        ([4, VOCAB_SIZE, 5], [4]),
        ([4, -1, 5], [4]),
        ([4, 5, 9, 7], [4, 5]),  # the end of the text
        ([8, 5], []),  # a stop token
    ],
)
def test_a_draft_ends_before_what_is_no_token_and_before_what_ends_the_request(
    proposed: list[int], draft: list[int]
) -> None:
    request = request_of(None, stop_token_ids=(8,))
    assert cut_draft(request, proposed, VOCAB_SIZE, jumps=False) == (draft, [])


class Choosy(Jumper):
    """Admits no token 7, and is at its end after a 10."""

    def copy(self) -> Choosy:
        other = Choosy()
        other.last = self.last
        return other

    def advance(self, token_id: int) -> str | None:
        super().advance(token_id)
        return "seven" if token_id == 7 else None

    @property
    def is_complete(self) -> bool:  # type: ignore[override]
        return self.last == 10


def test_a_draft_ends_before_what_the_grammar_does_not_admit_or_goes_on_by_itself() -> None:
    assert not dictated_after(4) and not dictated_after(5) and dictated_after(6)
    request = request_of(Choosy())
    draft, places = cut_draft(request, [4, 5, 7, 4], VOCAB_SIZE, jumps=True)
    assert draft == [4, 5] and [place.last for place in places] == [4, 5]  # type: ignore[attr-defined]
    assert cut_draft(request, [4, 10, 4], VOCAB_SIZE, jumps=True)[0] == [4]
    assert cut_draft(request, [4, 6, 4], VOCAB_SIZE, jumps=True)[0] == [4]
    assert cut_draft(request, [4, 6, 4], VOCAB_SIZE, jumps=False)[0] == [4, 6, 4]
    assert request.matcher is not None and request.matcher.last == -1  # type: ignore[attr-defined]


class Failing(Jumper):
    """Fails at the third token."""

    num_taken = 0

    def copy(self) -> Jumper:
        return Jumper()

    def advance(self, token_id: int) -> str | None:
        self.num_taken += 1
        return "planted" if self.num_taken == 3 else None

    def jump(self, limit: int, stop_ids: object) -> list[int]:
        return []


@pytest.mark.parametrize("max_tokens", [9, 3])
def test_tokens_before_one_at_which_the_grammar_fails_are_told(max_tokens: int) -> None:
    """As without a draft, where each of them has an output of its own."""
    told = []
    for ways in (["none"], ["right"]):
        world = Drafted(ways)
        message = AddRequest(1, prompt(0, 5), SamplingParams(max_tokens=max_tokens, seed=3))
        world.scheduler.enable_jump_forward = False
        world.scheduler.add(message, Failing())
        world.run()
        assert world.stops(1)[0] == "error" and "planted" in (world.outputs[1][-1].error or "")
        assert [output.finish_reason for output in world.outputs[1][:-1]] == [None] * (len(world.outputs[1]) - 1)
        told.append(world.tokens(1))
    assert told[0] == told[1] and len(told[0]) == 2


def test_an_error_of_one_ends_it_with_its_draft() -> None:
    world = Drafted(["right"])
    world.add(1, prompt(0, 5), max_tokens=20)
    world.add(2, prompt(9, 5), max_tokens=6)
    seed = world.seed(2)
    world.step()
    world.executor.errors = {1: "NaN"}
    world.run()
    assert world.stops(1) == ("error", None) and world.tokens(2) == alone(world.messages[2], 6, seed)


def test_the_engines_loop_verifies_drafts() -> None:
    engine = Engine()
    drafter = Guesser()
    engine.core = EngineCore(EngineConfig(), engine.executor.info, engine.executor, engine.connection, drafter=drafter)
    engine.start()
    messages = [engine.add(i, [i, 7, 3], max_tokens=9) for i in range(1, 4)]
    engine.wait_for_end(1, 2, 3)
    engine.shut_down()
    engine.client.close()
    assert engine.failure is None
    for i, message in enumerate(messages, 1):
        assert engine.tokens(i) == alone(message, 9, sampling_seed_of(message, 0, i))
    assert sum(accepted for _, accepted in drafter.told) > 0
