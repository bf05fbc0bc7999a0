"""Scores of prompts (S19) are exactly those of generation, however the prompt was computed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engine.harness import Engine, Reply, request
from octavo.wire.messages import AddRequest


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine(smollm2_gguf)


def prompt(length: int, seed: int = 3) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(1000, 40_000) for _ in range(length)]


def scored(request_id: int, tokens: list[int], alternatives: int = 2) -> AddRequest:
    return request(request_id, tokens, prompt_logprobs=alternatives, max_tokens=4)


@pytest.fixture(scope="module")
def alone(engine: Engine) -> Reply:
    reply = engine.run([scored(1, prompt(150))]).replies[1]
    assert len(reply.prompt_logprobs) == 149
    assert all(len(entry.top_ids) == 2 for entry in reply.prompt_logprobs)
    return reply


def test_s19_a_generated_text_scores_as_it_was_generated(engine: Engine) -> None:
    tokens = prompt(40)
    made = engine.run([request(1, tokens, max_tokens=20)]).replies[1]
    again = engine.run([scored(2, tokens + made.token_ids)]).replies[2]
    assert again.prompt_logprobs[39:] == made.logprobs


@pytest.mark.parametrize("budget", [96, 97])
def test_chunks_do_not_matter(engine: Engine, alone: Reply, budget: int) -> None:
    scheduler = engine.scheduler(max_num_batched_tokens=budget)
    assert engine.run([scored(1, prompt(150))], scheduler=scheduler).replies[1] == alone


def test_company_does_not_matter(engine: Engine, alone: Reply) -> None:
    others = [request(100 + i, prompt(30 + i, seed=i)) for i in range(20)]
    scores = [scored(200 + i, prompt(60 + i, seed=i), i) for i in range(5)]
    run = engine.run([*others, *scores, scored(1, prompt(150))], per_step=4)
    assert run.replies[1] == alone
    for i in range(5):
        assert [len(e.top_ids) for e in run.replies[200 + i].prompt_logprobs] == [i] * (59 + i)


def test_a_cached_prompt_is_scored_whole(engine: Engine, alone: Reply) -> None:
    scheduler = engine.scheduler()
    engine.run([request(5, prompt(150))], scheduler=scheduler)
    before = scheduler.stats().prefix_cache_hits
    run = engine.run([scored(1, prompt(150))], scheduler=scheduler)
    assert run.replies[1] == alone
    assert run.prefix_cache_hits == before
    # What it computed is there for others.
    assert engine.run([request(6, prompt(150))], scheduler=scheduler).prefix_cache_hits > before


def test_nothing_is_told_twice_after_a_preemption(engine: Engine) -> None:
    requests = [scored(i, prompt(150, seed=i)) for i in range(4)]
    for one in requests:
        assert one.params.max_tokens == 4
    long = [
        AddRequest(one.request_id, one.prompt_token_ids, request(0, [1], prompt_logprobs=1, max_tokens=60).params)
        for one in requests
    ]
    calm = {one.request_id: engine.run([one]).replies[one.request_id] for one in long}
    run = engine.run(long, scheduler=engine.scheduler(num_kv_blocks=46))
    assert run.num_preemptions > 0
    assert run.replies == calm


def test_a_prompt_of_one_token_has_no_scores(engine: Engine) -> None:
    assert engine.run([scored(1, [1234])]).replies[1].prompt_logprobs == []
