"""The real model in another process: plans, masks and answers as bytes give the same replies, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import test_jump_forward, test_same_tokens
from engine.drafters import Oracle
from engine.harness import Engine, Reply
from octavo.wire.messages import AddRequest
from support.remote_worker import RemoteExecutor


@pytest.fixture(scope="module")
def engine(smollm2_gguf: Path) -> Engine:
    return Engine(smollm2_gguf)


def requests_under_test(engine: Engine) -> list[AddRequest]:
    """Greedy and sampled, penalised where nothing is planned ahead of them, and with a grammar."""
    plain = [one for one in test_same_tokens.requests_under_test() if not one.params.frequency_penalty]
    guided = [
        test_jump_forward.guided(engine, 50 + i, grammar, frequency_penalty=0.4)
        for i, grammar in enumerate(test_jump_forward.GRAMMARS)
    ]
    return [*guided, *plain]


@pytest.fixture(scope="module")
def local(engine: Engine) -> dict[int, Reply]:
    return engine.run(requests_under_test(engine)).replies


@pytest.fixture(scope="module")
def remote(engine: Engine, local: dict[int, Reply]) -> Iterator[Engine]:
    """The same engine, whose worker is another process from now on."""
    executor = RemoteExecutor(engine.config, "real")
    info = executor.load()
    assert info.plans_ahead
    engine.worker, engine.info = executor, info  # type: ignore[assignment]
    yield engine
    executor.close()


def test_replies_are_the_same(remote: Engine, local: dict[int, Reply]) -> None:
    assert remote.run(requests_under_test(remote), per_step=2).replies == local


def test_replies_are_the_same_where_steps_are_planned_ahead(remote: Engine, local: dict[int, Reply]) -> None:
    run = remote.run(requests_under_test(remote), per_step=2, ahead=True)
    assert run.replies == local
    plain = [one for one in requests_under_test(remote) if one.params.grammar is None and not one.params.needs_output]
    run = remote.run(plain, ahead=True)
    assert run.replies == {one.request_id: local[one.request_id] for one in plain}
    assert run.num_ahead > 10


def test_replies_are_the_same_with_drafts(remote: Engine, local: dict[int, Reply]) -> None:
    drafter = Oracle(local)
    run = remote.run(requests_under_test(remote), scheduler=remote.scheduler(drafter=drafter))
    assert run.replies == local
    assert drafter.num_accepted > 10 and drafter.num_rejected > 10
