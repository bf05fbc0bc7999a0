"""The law: the same request gives the same text, bit for bit, whatever else the engine does.

Replies are compared with their log probabilities, float for float: a kernel whose rounding depends on the batch
fails here long before a token changes.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engine.harness import Engine, Reply, Run, request
from octavo import _cpu
from octavo.device.cpu import CPUDevice
from octavo.wire.messages import AddRequest


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine(smollm2_gguf)


def prompts() -> list[list[int]]:
    """Token ids of no meaning but varied length; the last two share a long beginning."""
    rng = random.Random(5)
    shared = [rng.randrange(1000, 40_000) for _ in range(160)]
    lengths = (1, 15, 16, 17, 130, 400)
    plain = [[rng.randrange(1000, 40_000) for _ in range(n)] for n in lengths]
    return [*plain, [*shared, 1234, 77], [*shared, 4321]]


def requests_under_test() -> list[AddRequest]:
    """Greedy and sampled, with and without penalties."""
    result = []
    for i, prompt in enumerate(prompts()):
        sampled = {"temperature": 0.9, "top_p": 0.9, "top_k": 50, "seed": 100 + i} if i % 2 else {}
        penalised = {"frequency_penalty": 0.4, "repetition_penalty": 1.1} if i % 3 == 0 else {}
        result.append(request(i, prompt, **sampled, **penalised))
    # What follows the request's own tokens, through all that may happen to it.
    result.append(request(20, prompts()[4], temperature=1.0, mirostat=2, mirostat_tau=3.0))
    result.append(request(21, prompts()[2], temperature=1.0, mirostat=1, xtc_probability=0.5, dry_multiplier=0.8))
    result.append(request(22, prompts()[3], temperature=1.2, xtc_probability=0.6, typical_p=0.9, dynatemp_range=0.4))
    return result


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    """Each request by itself, without prefix cache."""
    replies = {}
    for one in requests_under_test():
        replies |= engine.run([one], scheduler=engine.scheduler(prefix_caching=False)).replies
    assert all(len(reply.token_ids) == 24 and reply.finish_reason == "length" for reply in replies.values())
    return replies


def check(run: Run, alone: dict[int, Reply]) -> None:
    for request_id, reply in alone.items():
        assert run.replies[request_id] == reply, f"request {request_id} differs"


def test_in_a_batch_of_its_own_kind(engine: Engine, alone: dict[int, Reply]) -> None:
    check(engine.run(requests_under_test(), scheduler=engine.scheduler(prefix_caching=False)), alone)


def test_among_64_others_that_come_and_go(engine: Engine, alone: dict[int, Reply]) -> None:
    rng = random.Random(9)
    others = [
        request(1000 + i, [rng.randrange(40_000) for _ in range(rng.randrange(1, 60))], max_tokens=rng.randrange(1, 30))
        for i in range(64)
    ]
    mixed = requests_under_test() + others
    rng.shuffle(mixed)
    check(engine.run(mixed, per_step=7), alone)


@pytest.mark.parametrize("budget", [96, 33])
def test_however_the_prompt_is_chunked(engine: Engine, alone: dict[int, Reply], budget: int) -> None:
    check(engine.run(requests_under_test(), scheduler=engine.scheduler(max_num_batched_tokens=budget)), alone)


def test_with_the_prompt_in_the_prefix_cache(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler()
    engine.run(requests_under_test(), scheduler=scheduler)
    before = scheduler.stats().prefix_cache_hits
    run = engine.run(requests_under_test(), scheduler=scheduler)
    assert run.prefix_cache_hits - before > 500
    check(run, alone)


def test_through_preemption(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler(num_kv_blocks=56, prefix_caching=False)
    run = engine.run(requests_under_test(), scheduler=scheduler)
    assert run.num_preemptions > 0
    check(run, alone)


def test_through_preemption_to_the_host(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler(num_kv_blocks=56, prefix_caching=False, num_swap_blocks=1000)
    run = engine.run(requests_under_test(), scheduler=scheduler)
    assert run.num_preemptions > 0 and run.num_swapped > 0
    check(run, alone)


def test_when_steps_are_planned_ahead(
    alone: dict[int, Reply], smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token that a step samples is the next one's input without having been on the host. Penalties are left out:
    the CPU counts tokens on the host."""
    monkeypatch.setattr(CPUDevice, "plans_ahead", True)
    engine = Engine(smollm2_gguf)
    plain = [one for one in requests_under_test() if not one.params.needs_output]
    requests = [one for one in plain if not one.params.frequency_penalty]
    expected = {request.request_id: alone[request.request_id] for request in requests}
    run = engine.run(requests, ahead=True, per_step=2)
    assert run.num_ahead > 10
    check(run, expected)
    run = engine.run(requests, scheduler=engine.scheduler(num_kv_blocks=50, prefix_caching=False), ahead=True)
    assert run.num_ahead > 10 and run.num_preemptions > 0
    check(run, expected)


def test_with_one_thread(engine: Engine, alone: dict[int, Reply]) -> None:
    _cpu.set_num_threads(1)
    try:
        check(engine.run(requests_under_test()), alone)
    finally:
        _cpu.set_num_threads(2)


def test_after_a_restart_and_in_another_order(alone: dict[int, Reply], smollm2_gguf: Path) -> None:
    check(Engine(smollm2_gguf).run(requests_under_test()[::-1], per_step=2), alone)


def test_s8_masks_and_all_else_that_a_request_may_ask_for(engine: Engine) -> None:
    """The fields of the request, each alone and then all together in one batch."""
    prompt = prompts()[4]
    fields: list[dict[str, Any]] = [
        {"allowed_token_ids": tuple(range(500, 900)), "temperature": 1.0},
        {"bad_word_token_ids": ((500,), (501, 502)), "temperature": 1.5},
        {"min_tokens": 10, "ignore_eos": False, "stop_token_ids": (28, 30), "temperature": 1.0},
        {"logit_bias": {600: 5.0, 601: -100.0}, "temperature": 0.8, "min_p": 0.05},
        {"prompt_logprobs": 3, "temperature": 1.0, "top_p": 0.8},
    ]
    requests = [request(i, prompt, **one) for i, one in enumerate(fields)]
    lonely = {one.request_id: engine.run([one]).replies[one.request_id] for one in requests}
    assert engine.run(requests[::-1]).replies == lonely
    assert set(lonely[0].token_ids) <= set(range(500, 900))


def test_the_samples_of_a_request_differ_and_repeat(engine: Engine) -> None:
    prompt = prompts()[4]

    def sample(index: int) -> AddRequest:
        template = request(500 + index, prompt, temperature=1.0, seed=3, n=4)
        return AddRequest(template.request_id, prompt, template.params, sample_index=index)

    samples = [sample(index) for index in range(4)]
    first, second = engine.run(samples), engine.run(samples[::-1])
    assert first.replies == second.replies
    assert len({tuple(reply.token_ids) for reply in first.replies.values()}) == 4
