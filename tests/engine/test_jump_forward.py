"""G26: text that a grammar dictates is taken without being sampled, and the reply depends on nothing around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.harness import Engine, Reply, Run, request
from octavo.core.scheduler.scheduler import Scheduler
from octavo.text.grammars.helper import canonical
from octavo.wire.messages import AddRequest

KEYS = ("firstName", "date_of_birth", "email_address", "is_active", "status")
PERSON = {
    "type": "object",
    "properties": {
        "firstName": {"type": "string", "maxLength": 12},
        "date_of_birth": {"type": "string", "format": "date"},
        "email_address": {"type": "string", "maxLength": 16},
        "is_active": {"type": "boolean"},
        "status": {"enum": ["pending confirmation", "confirmed", "cancelled"]},
    },
    "required": [*KEYS],
    "additionalProperties": False,
}
GRAMMARS = [
    canonical("json", PERSON, {"whitespace_flexible": False}),
    canonical("json", PERSON, {"whitespace_pattern": "[\\n ]?"}),
    canonical("choice", ["The answer is certainly positive.", "The answer is certainly negative."], {}),
]


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine(smollm2_gguf)


def guided(engine: Engine, index: int, grammar: str, **params: Any) -> AddRequest:
    prompt = engine.tokenizer.encode(f"Describe person {index} as JSON:", add_special_tokens=False)
    settings = {"max_tokens": 160, "logprobs": None, "ignore_eos": False, "seed": 40 + index, "grammar": grammar}
    one = request(index, prompt, **(settings | params))
    return AddRequest(index, list(prompt), one.params, engine.tokenizer.eos_token_ids)


def requests_under_test(engine: Engine) -> list[AddRequest]:
    """Greedy and sampled, with and without penalties."""
    result = []
    for i in range(12):
        sampled = {"temperature": 0.9, "top_p": 0.95} if i % 2 else {}
        penalised = {"frequency_penalty": 0.4} if i % 3 == 0 else {}
        result.append(guided(engine, i, GRAMMARS[i % 3], **sampled, **penalised))
    return result


def without_jumps(engine: Engine) -> Scheduler:
    scheduler = engine.scheduler()
    scheduler.enable_jump_forward = False
    return scheduler


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    replies = {}
    for one in requests_under_test(engine):
        replies |= engine.run([one], scheduler=engine.scheduler(prefix_caching=False)).replies
    return replies


def check(run: Run, alone: dict[int, Reply]) -> None:
    for request_id, reply in alone.items():
        assert run.replies[request_id] == reply, f"request {request_id} differs"


def test_the_replies_are_whole_and_take_fewer_steps(engine: Engine, alone: dict[int, Reply]) -> None:
    for i, reply in alone.items():
        assert (reply.finish_reason, reply.error) == ("stop", None)
        text = engine.tokenizer.decode(reply.token_ids)
        if i % 3 < 2:
            assert tuple(json.loads(text)) == KEYS
        else:
            assert text in ("The answer is certainly positive.", "The answer is certainly negative.")
    for i in range(3):
        one = guided(engine, i, GRAMMARS[i])
        jumping, plain = engine.scheduler(), without_jumps(engine)
        engine.run([one], scheduler=jumping)
        reply = engine.run([one], scheduler=plain).replies[i]
        assert len(reply.token_ids) == plain.stats().num_steps
        assert jumping.stats().num_steps <= 0.8 * plain.stats().num_steps


def test_in_a_batch_however_it_comes(engine: Engine, alone: dict[int, Reply]) -> None:
    check(engine.run(requests_under_test(engine)), alone)
    check(engine.run(requests_under_test(engine)[::-1], per_step=1), alone)


def test_however_the_tokens_are_cut_into_steps(engine: Engine, alone: dict[int, Reply]) -> None:
    check(engine.run(requests_under_test(engine), scheduler=engine.scheduler(max_num_batched_tokens=13)), alone)


def test_with_a_prefix_in_the_cache(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler()
    engine.run(requests_under_test(engine), scheduler=scheduler)
    # The first reply as a prompt: its blocks, with those that a jump filled, are found again.
    one = requests_under_test(engine)[0]
    whole = [*one.prompt_token_ids, *alone[0].token_ids]
    before = scheduler.stats().prefix_cache_hits
    again = request(99, whole, max_tokens=8)
    with_cache = engine.run([again], scheduler=scheduler).replies
    assert scheduler.stats().prefix_cache_hits - before >= len(whole) - 2 * engine.info.block_size
    assert with_cache == engine.run([again], scheduler=engine.scheduler(prefix_caching=False)).replies
    check(engine.run(requests_under_test(engine), scheduler=scheduler), alone)


def test_through_preemption(engine: Engine, alone: dict[int, Reply]) -> None:
    run = engine.run(requests_under_test(engine), scheduler=engine.scheduler(num_kv_blocks=24, prefix_caching=False))
    assert run.num_preemptions > 0
    check(run, alone)


def test_max_tokens_may_end_within_a_jump(engine: Engine) -> None:
    whole = engine.run([guided(engine, 0, GRAMMARS[0])]).replies[0].token_ids
    for max_tokens in range(1, 20):
        reply = engine.run([guided(engine, 0, GRAMMARS[0], max_tokens=max_tokens)]).replies[0]
        assert (reply.token_ids, reply.finish_reason) == (whole[:max_tokens], "length")


def test_a_stop_token_is_sampled_and_ends_the_request(engine: Engine) -> None:
    """The text of a stop token is no part of the reply: it cannot be one of many that were dictated."""
    whole = engine.run([guided(engine, 0, GRAMMARS[0])]).replies[0].token_ids
    stop = whole[3]
    reply = engine.run([guided(engine, 0, GRAMMARS[0], stop_token_ids=(stop,))]).replies[0]
    assert (reply.token_ids, reply.finish_reason) == (whole[:4], "stop")


@pytest.mark.parametrize(
    "params",
    [
        {"logprobs": 1},
        {"bad_word_token_ids": ((7,),)},
        {"logit_bias": {7: -1.0}},
        {"allowed_token_ids": tuple(range(40_000))},
    ],
    ids=["logprobs", "bad words", "bias", "allowed tokens"],
)
def test_who_has_a_say_in_each_token_samples_each(engine: Engine, params: dict[str, Any]) -> None:
    one = guided(engine, 1, GRAMMARS[0], **params)
    scheduler = engine.scheduler()
    reply = engine.run([one], scheduler=scheduler).replies[1]
    assert reply == engine.run([one], scheduler=without_jumps(engine)).replies[1]
    assert len(reply.token_ids) == scheduler.stats().num_steps
    assert len(reply.logprobs) == (len(reply.token_ids) if "logprobs" in params else 0)
