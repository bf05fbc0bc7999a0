"""The law of the same text, with sounds: a reply depends on nothing but its own request, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest

from engine.harness import Reply, Run, request
from engine.pieces import check_pieces
from models.test_sound_towers import SOUND, Case, sound
from octavo.wire.messages import AddRequest


@pytest.fixture(scope="module", params=["ultravox", "qwen2-audio"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("hearing"), request.param)


@pytest.fixture(scope="module")
def requests(case: Case) -> list[AddRequest]:
    """Without a sound, with one and with several, of which some are the same, and of several pieces where the family
    knows them; the last two share a long beginning."""
    lengths = [0.3, 2.43, 1.9] if case.name == "ultravox" else [0.3, 0.9, 0.52]
    sounds = [sound(seconds, seed) for seed, seconds in enumerate(lengths)]
    rng = random.Random(3)
    shared = [rng.randrange(1, SOUND) for _ in range(40)]
    made = [
        case.prompt([], shared[:9]),
        case.prompt(sounds[:1]),
        case.prompt([sounds[1], sounds[0], sounds[1]], shared[:5]),
        case.prompt([sounds[2], sounds[0]], shared),
        case.prompt([sounds[2], sounds[1]], shared),
    ]
    sampled: dict[str, Any] = {"temperature": 0.9, "seed": 5}
    return [
        AddRequest(i, ids, request(i, ids, max_tokens=12, **(sampled if i % 2 else {})).params, media=media)
        for i, (ids, media) in enumerate(made)
    ]


@pytest.fixture(scope="module")
def alone(case: Case, requests: list[AddRequest]) -> dict[int, Reply]:
    replies = {}
    for one in requests:
        replies |= case.engine.run([one], scheduler=case.engine.scheduler(prefix_caching=False)).replies
    assert all(len(reply.token_ids) == 12 for reply in replies.values())
    return replies


def check(run: Run, alone: dict[int, Reply]) -> None:
    for request_id, reply in alone.items():
        assert run.replies[request_id] == reply, f"request {request_id} differs"


def test_in_company(case: Case, requests: list[AddRequest], alone: dict[int, Reply]) -> None:
    check(case.engine.run(requests), alone)
    check(case.engine.run(requests[::-1], per_step=1), alone)


@pytest.mark.parametrize("narrow", [{"max_num_prefill_tokens": 5}, {"media_step_rows": 3, "media_cache_rows": 9}])
def test_however_prompts_are_cut_and_however_little_room_there_is(
    case: Case, requests: list[AddRequest], alone: dict[int, Reply], narrow: dict[str, int]
) -> None:
    check(case.engine.run(requests, scheduler=case.engine.scheduler(**narrow)), alone)


def test_rows_do_not_depend_on_how_many_pieces_a_step_encodes(case: Case, requests: list[AddRequest]) -> None:
    check_pieces(case.engine, requests[2].media[:2])


def test_rows_and_blocks_of_earlier_requests(case: Case, requests: list[AddRequest], alone: dict[int, Reply]) -> None:
    scheduler = case.engine.scheduler()
    encoded = []
    for _ in range(2):
        run = case.engine.run(requests, scheduler=scheduler)
        check(run, alone)
        encoded.append(scheduler.stats().media_rows_encoded)
    assert run.prefix_cache_hits > 50 and encoded[0] == encoded[1], "a sound is encoded once"


def test_another_sound_is_another_reply(case: Case) -> None:
    """Although the tokens are the same, which is what the prefix cache would go by."""
    scheduler = case.engine.scheduler()
    logprobs = []
    for seed in (1, 2):
        ids, media = case.prompt([sound(0.6, seed)])
        made = AddRequest(seed, ids, request(seed, ids, max_tokens=2).params, media=media)
        logprobs.append(case.engine.run([made], scheduler=scheduler).replies[seed].logprobs)
    assert logprobs[0] != logprobs[1]


def test_asleep_and_awake(case: Case, requests: list[AddRequest], alone: dict[int, Reply]) -> None:
    for level in (1, 2):
        case.engine.worker.sleep(level)
        case.engine.worker.wake_up()
        check(case.engine.run(requests), alone)
