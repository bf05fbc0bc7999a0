"""The law of drafts: whatever is proposed, a reply and its log probabilities are those without, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine import test_jump_forward, test_same_tokens
from engine.drafters import Oracle
from engine.harness import Engine, Reply, Run, request
from octavo.base.repetition import RepetitionDetection
from octavo.wire.messages import AddRequest


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine(smollm2_gguf)


def settings(engine: Engine) -> list[dict[str, Any]]:
    """What a row's token depends on beside its logits, greedy and sampled."""
    stop = engine.tokenizer.encode(" the", add_special_tokens=False)[0]
    words = tuple(
        tuple(engine.tokenizer.encode(text, add_special_tokens=False)) for text in (" one of", "\n\n", " the first")
    )
    sampled = {"temperature": 1.1, "top_p": 0.95}
    return [
        {"repetition_penalty": 1.3, "frequency_penalty": 0.6},
        {"presence_penalty": 1.5, **sampled},
        {"bad_word_token_ids": words},
        {"bad_word_token_ids": words, "min_p": 0.02, **sampled},
        {"min_tokens": 9, "stop_token_ids": (stop,), "max_tokens": 30},
        {"stop_token_ids": (stop,), "logprobs": None, **sampled},
        {"logit_bias": {stop: 3.0}, "top_k": 20, **sampled},
        {"allowed_token_ids": tuple(range(200, 3000)), "temperature": 1.5},
        {"prompt_logprobs": 1, "logprobs": 0, "max_tokens": 13},
        {"dry_multiplier": 1.5, "dry_allowed_length": 1, "repetition_penalty": 1.2, "repeat_last_n": 12},
        {"xtc_probability": 0.5, "top_n_sigma": 2.0, "dynatemp_range": 0.5, **sampled},
        {"repetition_detection": RepetitionDetection(max_pattern_size=8, min_count=2), "max_tokens": 60},
        {"max_tokens": 1},
        {"max_tokens": 2, **sampled},
        {"ignore_eos": False, "logprobs": None, "max_tokens": 40},
    ]


def requests_under_test(engine: Engine) -> list[AddRequest]:
    """Plain ones, those with settings, and those with a grammar, that jump or are scored."""
    text = engine.tokenizer.encode("Tell me one of the first things that you remember:", add_special_tokens=False)
    special = [
        AddRequest(100 + i, [*text, 300 + i], request(0, text, seed=70 + i, **fields).params, engine.info.eos_token_ids)
        for i, fields in enumerate(settings(engine))
    ]
    guided = [
        test_jump_forward.guided(engine, 200 + i, grammar, **fields)
        for i, grammar in enumerate(test_jump_forward.GRAMMARS)
        for fields in ({"max_tokens": 70}, {"max_tokens": 40, "logprobs": 1, "temperature": 0.8, "min_tokens": 12})
    ]
    guided = [AddRequest(200 + i, one.prompt_token_ids, one.params, one.eos_token_ids) for i, one in enumerate(guided)]
    return [*test_same_tokens.requests_under_test(), *special, *guided]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    """Each request by itself, without drafts."""
    replies = {}
    for one in requests_under_test(engine):
        replies |= engine.run([one], scheduler=engine.scheduler(prefix_caching=False)).replies
    return replies


def check(run: Run, alone: dict[int, Reply]) -> None:
    for request_id, reply in alone.items():
        assert run.replies[request_id] == reply, f"request {request_id} differs"


def test_right_drafts_take_fewer_steps(engine: Engine, alone: dict[int, Reply]) -> None:
    drafter = Oracle(alone, ["right"])
    scheduler = engine.scheduler(drafter=drafter)
    one = test_same_tokens.requests_under_test()[1]
    assert engine.run([one], scheduler=scheduler).replies[1] == alone[1]
    assert drafter.num_rejected == 0 and drafter.num_accepted > 12
    assert scheduler.stats().num_steps == len(alone[1].token_ids) - drafter.num_accepted


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_num_batched_tokens": 33},
        {"num_kv_blocks": 32, "prefix_caching": False},
        {"num_kv_blocks": 32, "prefix_caching": False, "num_swap_blocks": 1000},
    ],
    ids=["together", "in small steps", "preempted", "swapped"],
)
def test_in_a_batch(engine: Engine, alone: dict[int, Reply], limits: dict[str, Any]) -> None:
    drafter = Oracle(alone)
    scheduler = engine.scheduler(drafter=drafter, **limits)
    run = engine.run(requests_under_test(engine)[::-1], scheduler=scheduler)
    check(run, alone)
    assert drafter.num_accepted > 20 and drafter.num_rejected > 20
    assert (run.num_preemptions > 0) == ("num_kv_blocks" in limits)
    assert (run.num_swapped > 0) == ("num_swap_blocks" in limits)


def test_each_by_itself(engine: Engine, alone: dict[int, Reply]) -> None:
    for one in requests_under_test(engine):
        run = engine.run([one], scheduler=engine.scheduler(drafter=Oracle(alone), prefix_caching=False))
        assert run.replies[one.request_id] == alone[one.request_id]


def test_blocks_that_drafts_filled_serve_others(engine: Engine, alone: dict[int, Reply]) -> None:
    """A reply as a prompt: its blocks are found, and hold nothing of what was rejected."""
    scheduler = engine.scheduler(drafter=Oracle(alone, ["half", "right", "wrong"]))
    one = test_same_tokens.requests_under_test()[5]
    assert engine.run([one], scheduler=scheduler).replies[5] == alone[5]
    again = request(5, [*one.prompt_token_ids, *alone[5].token_ids], max_tokens=8)
    expected = engine.run([again], scheduler=engine.scheduler(prefix_caching=False)).replies
    before = scheduler.stats().prefix_cache_hits
    assert engine.run([again], scheduler=scheduler).replies == expected
    assert scheduler.stats().prefix_cache_hits - before >= len(again.prompt_token_ids) - 2 * engine.info.block_size


def test_what_was_drawn_from_is_scored_with_the_counts_of_its_row(smollm2_gguf: Path) -> None:
    engine = Engine(smollm2_gguf, logprobs_mode="processed_logprobs")
    requests = [one for one in requests_under_test(engine) if one.params.grammar is None][8:]
    expected = engine.run(requests).replies
    drafter = Oracle(expected)
    check(engine.run(requests, scheduler=engine.scheduler(drafter=drafter)), expected)
    assert drafter.num_accepted > 20 and drafter.num_rejected > 20
