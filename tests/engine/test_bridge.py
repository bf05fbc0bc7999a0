"""Models by way of transformers in the whole engine: the same text, whatever else is served; a real one says what
octavo's own family says."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from engine.harness import Engine, Reply, Run, request
from models.test_bridge import OPTIONS, make
from octavo.models.bridge.model import BridgedModel
from octavo.text.grammars.helper import canonical
from octavo.wire.messages import AddRequest

#: Windows, experts, gates: what of a step's rows is computed by which module differs from row to row.
FAMILY = "afmoe"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, smollm2_hf: Path) -> Engine:
    directory = tmp_path_factory.mktemp("bridged")
    sizes = {"vocab_size": 49_152, "max_position_embeddings": 2048, "num_hidden_layers": 4, "sliding_window": 40}
    make(directory, FAMILY, {**OPTIONS[FAMILY], **sizes})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(smollm2_hf / name, directory / name)
    return Engine(directory)


def requests_under_test() -> list[AddRequest]:
    rng = random.Random(5)
    shared = [rng.randrange(1000, 40_000) for _ in range(96)]
    plain = [[rng.randrange(1000, 40_000) for _ in range(n)] for n in (1, 15, 17, 130)]
    sampled = {"temperature": 0.9, "top_p": 0.9, "frequency_penalty": 0.4}
    prompts = [*plain, [*shared, 1234, 77], [*shared, 4321]]
    return [request(i, prompt, **(sampled if i % 2 else {})) for i, prompt in enumerate(prompts)]


@pytest.fixture(scope="module")
def alone(engine: Engine) -> dict[int, Reply]:
    """Each request by itself, without prefix cache."""
    replies = {}
    for one in requests_under_test():
        replies |= engine.run([one], scheduler=engine.scheduler(prefix_caching=False)).replies
    return replies


def check(run: Run, alone: dict[int, Reply]) -> None:
    assert {number: run.replies[number] for number in alone} == alone


def test_the_model_is_bridged_with_windows(engine: Engine) -> None:
    model = engine.worker._runner._model
    assert isinstance(model, BridgedModel)
    assert sorted(engine.info.kv_group_windows) == [0, 40, 40, 40]


def test_among_others_that_come_and_go(engine: Engine, alone: dict[int, Reply]) -> None:
    rng = random.Random(9)
    others = [
        request(100 + i, [rng.randrange(40_000) for _ in range(rng.randrange(1, 60))], max_tokens=rng.randrange(1, 20))
        for i in range(20)
    ]
    mixed = requests_under_test() + others
    rng.shuffle(mixed)
    check(engine.run(mixed, per_step=5, scheduler=engine.scheduler(max_num_batched_tokens=96)), alone)


def test_with_the_prompt_in_the_prefix_cache(engine: Engine, alone: dict[int, Reply]) -> None:
    scheduler = engine.scheduler()
    engine.run(requests_under_test(), scheduler=scheduler)
    before = scheduler.stats().prefix_cache_hits
    run = engine.run(requests_under_test(), scheduler=scheduler)
    assert run.prefix_cache_hits - before > 200
    check(run, alone)


def test_through_preemption(engine: Engine, alone: dict[int, Reply]) -> None:
    growing = [request(100 + i, list(range(2000, 2015)), max_tokens=40) for i in range(8)]
    scheduler = engine.scheduler(num_kv_blocks=50, prefix_caching=False)
    run = engine.run([*growing, *requests_under_test()], scheduler=scheduler)
    assert run.num_preemptions > 0
    check(run, alone)


def test_a_grammar_holds_it_alone_and_in_company(engine: Engine, alone: dict[int, Reply]) -> None:
    grammar = canonical("regex", "(yes|no), [0-9]{4}", {})
    plain = request(50, [5, 6, 7], grammar=grammar, ignore_eos=False, logprobs=None)
    held = AddRequest(50, [5, 6, 7], plain.params, engine.tokenizer.eos_token_ids)
    by_itself = engine.run([held]).replies[50]
    text = engine.tokenizer.decode(by_itself.token_ids)
    assert re.fullmatch(r"(yes|no), [0-9]{4}(<\|im_end\|>)?", text)
    run = engine.run([held, *requests_under_test()])
    assert run.replies[50] == by_itself
    check(run, alone)


@pytest.mark.parametrize("level", [1, 2])
def test_after_a_sleep_it_says_the_same(engine: Engine, alone: dict[int, Reply], level: int) -> None:
    engine.worker.sleep(level)
    engine.worker.wake_up()
    check(engine.run(requests_under_test()), alone)


def test_a_real_llama_says_what_octavos_own_family_says(smollm2_hf: Path) -> None:
    prompts = [[504, 3575, 282, 4649, 314], [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198]]
    told = []
    for impl in ("octavo", "transformers"):
        engine = Engine(smollm2_hf, model_impl=impl)
        run = engine.run([request(i, prompt, max_tokens=64) for i, prompt in enumerate(prompts)])
        told.append([reply.token_ids for _, reply in sorted(run.replies.items())])
    assert told[0] == told[1] and all(len(ids) == 64 for ids in told[0])
