"""The engine's loop with a worker in another process: the same tokens, and steps are planned ahead all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.fake import alone
from core.test_engine_core import Engine
from octavo.base.config import EngineConfig
from octavo.core.engine_core import EngineCore
from octavo.core.request import sampling_seed_of
from octavo.wire.messages import EngineInfo
from octavo.wire.step import SchedulerOutput
from support.remote_worker import RemoteExecutor


class Watched(RemoteExecutor):
    """Counts the steps that were submitted before the last was collected."""

    num_under_way = num_ahead = 0

    def submit(self, plan: SchedulerOutput) -> None:
        self.num_ahead += self.num_under_way > 0
        self.num_under_way += 1
        super().submit(plan)

    def collect(self, step: None) -> object:
        self.num_under_way -= 1
        return super().collect(step)


class RemoteEngine(Engine):
    def __init__(self) -> None:
        super().__init__()
        self.remote = Watched(EngineConfig(), "fake")
        self.info: EngineInfo = self.remote.load()
        self.core = EngineCore(EngineConfig(), self.info, self.remote, self.connection)


@pytest.fixture
def engine() -> Iterator[RemoteEngine]:
    engine = RemoteEngine().start()
    yield engine
    engine.shut_down()
    engine.client.close()
    engine.remote.close()
    assert engine.failure is None


def test_tokens_are_those_of_a_worker_in_this_process(engine: RemoteEngine) -> None:
    messages = [engine.add(i, [i, 7, 7, 3], max_tokens=5 + i, sample_index=i % 3) for i in range(1, 9)]
    engine.wait_for_end(*range(1, 9))
    for i, message in enumerate(messages, 1):
        assert engine.tokens(i) == alone(message, 5 + i, sampling_seed_of(message, 0, i))
    assert engine.remote.num_ahead > 0
