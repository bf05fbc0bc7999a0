"""The law of the same text, with pictures: a reply depends on nothing but its own request, bit for bit, however its
prompt is cut, whatever is encoded beside its pictures, and wherever their rows and its blocks come from."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.harness import Reply, Run, request
from engine.pieces import check_pieces
from models.tower_cases import IMAGE
from models.towers import Case
from octavo.base.media import MediaItem, MediaTensor, place_media
from octavo.wire.messages import AddRequest
from support.pictures import pixels


@pytest.fixture(scope="module", params=["llava", "idefics3", "qwen2-vl", "gemma3", "qwen3-vl"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("media"), request.param)


@pytest.fixture(scope="module")
def alone(case: Case) -> dict[int, Reply]:
    """Each request by itself, without prefix cache."""
    replies = {}
    for one in requests_under_test(case):
        replies |= case.engine.run([one], scheduler=case.engine.scheduler(prefix_caching=False)).replies
    assert all(len(reply.token_ids) == 12 for reply in replies.values())
    return replies


def requests_under_test(case: Case) -> list[AddRequest]:
    """Without a picture, with one and with several, of which some are the same; the last two share a long beginning."""
    pictures = [pixels(20 + 7 * seed, 30, seed) for seed in range(3)]
    rng = random.Random(3)
    shared = [rng.randrange(1, IMAGE) for _ in range(40)]
    made = [
        case.prompt([], shared[:9]),
        case.prompt(pictures[:1]),
        case.prompt([pictures[1], pictures[0], pictures[1]], shared[:5]),
        case.prompt([pictures[2], pictures[0]], shared),
        case.prompt([pictures[2], pictures[1]], shared),
    ]
    sampled: dict[str, Any] = {"temperature": 0.9, "seed": 5}
    return [
        AddRequest(i, ids, request(i, ids, max_tokens=12, **(sampled if i % 2 else {})).params, media=media)
        for i, (ids, media) in enumerate(made)
    ]


def check(run: Run, alone: dict[int, Reply]) -> None:
    for request_id, reply in alone.items():
        assert run.replies[request_id] == reply, f"request {request_id} differs"


def test_in_company(case: Case, alone: dict[int, Reply]) -> None:
    check(case.engine.run(requests_under_test(case)), alone)
    check(case.engine.run(requests_under_test(case)[::-1], per_step=1), alone)


@pytest.mark.parametrize("narrow", [{"max_num_prefill_tokens": 9}, {"media_step_rows": 4, "media_cache_rows": 17}])
def test_however_prompts_are_cut_and_however_little_room_there_is(
    case: Case, alone: dict[int, Reply], narrow: dict[str, int]
) -> None:
    check(case.engine.run(requests_under_test(case), scheduler=case.engine.scheduler(**narrow)), alone)


def test_rows_do_not_depend_on_how_many_pieces_a_step_encodes(case: Case) -> None:
    check_pieces(case.engine, case.prompt([pixels(20, 30, 1), pixels(41, 22, 2)])[1])


def test_rows_and_blocks_of_earlier_requests(case: Case, alone: dict[int, Reply]) -> None:
    scheduler = case.engine.scheduler()
    for _ in range(2):
        run = case.engine.run(requests_under_test(case), scheduler=scheduler)
        check(run, alone)
    stats = scheduler.stats()
    assert run.prefix_cache_hits > 100 and stats.media_rows_encoded < stats.media_rows_total


def test_preempted_requests_go_on_as_if_nothing_had_been(case: Case, alone: dict[int, Reply]) -> None:
    longest = max(len(each.prompt_token_ids) for each in requests_under_test(case)) + 12
    run = case.engine.run(
        requests_under_test(case),
        scheduler=case.engine.scheduler(prefix_caching=False, num_kv_blocks=2 + -(-longest // 16) + 4),
    )
    check(run, alone)
    assert run.num_preemptions > 0 or case.family == "Gemma3"  # whose windows give blocks back


def test_asleep_and_awake(case: Case, alone: dict[int, Reply]) -> None:
    for level in (1, 2):
        case.engine.worker.sleep(level)
        case.engine.worker.wake_up()
        check(case.engine.run(requests_under_test(case)), alone)


def test_another_picture_is_another_reply(case: Case) -> None:
    scheduler = case.engine.scheduler()
    logprobs = []
    for seed in (1, 2):
        ids, media = case.prompt([pixels(16, 16, seed)])
        made = AddRequest(seed, ids, request(seed, ids, max_tokens=2).params, media=media)
        logprobs.append(case.engine.run([made], scheduler=scheduler).replies[seed].logprobs)
    assert logprobs[0] != logprobs[1]


def test_rows_that_are_ready_are_read_as_they_are(case: Case) -> None:
    """The embeddings of tokens, given as rows, are the tokens."""
    if case.family == "Gemma3":
        pytest.skip("embeddings of tokens are scaled, and rows of a span see each other")
    ids = [3, 4, 5, 6, 7, 8]
    plain = case.engine.run([AddRequest(1, ids, request(1, ids, max_tokens=4).params)]).replies[1]
    table = case.model.get_input_embeddings().weight.detach().numpy()[ids[1:4]].astype(np.float32)
    if case.family == "Qwen3VL":  # nothing is added by its first layers
        table = np.pad(table, ((0, 0), (0, 2 * table.shape[1])))
    tensors = {"rows": MediaTensor("float32", table.shape, table.tobytes())}
    given = [ids[0], IMAGE, IMAGE, IMAGE, *ids[4:]]
    item = MediaItem("embeds", b"rows", tensors, ((1, 3),))
    params = request(1, given, max_tokens=4).params
    assert case.engine.run([AddRequest(1, given, params, media=(item,))]).replies[1] == plain
    wrong = MediaItem("embeds", b"rows", tensors, ((1, 2),))
    refused = case.engine.scheduler().add(AddRequest(1, given, params, media=(wrong,)))
    assert refused is not None and "shape" in (refused.error or "")


def test_placeholders_without_a_picture_are_tokens_like_any_other(case: Case, tmp_path: Path) -> None:
    ids = [3, IMAGE, IMAGE, 4]
    assert place_media(ids, 1, []) == ()
    reply = case.engine.run([AddRequest(1, ids, request(1, ids, max_tokens=2).params)]).replies[1]
    assert reply.error is None and len(reply.token_ids) == 2


@pytest.mark.parametrize("name", ["qwen2.5-vl", "glm4v", "minicpm-v-4.6"])
def test_rows_of_towers_with_windows_and_mixed_positions_do_not_depend_on_pieces(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, name)
    check_pieces(case.engine, case.prompt([pixels(41, 22, 2), pixels(20, 30, 1)])[1])
