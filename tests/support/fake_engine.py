"""An engine process with the fake model, for the server's tests: `python fake_engine.py --fd N`.

FAKE_STEP_SECONDS makes each step that long, FAKE_LOAD_SECONDS the start; FAKE_INFO is JSON for `EngineInfo`'s fields.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from core.fake import FakeExecutor, info
from octavo.base.config import EngineConfig
from octavo.core.process import main
from octavo.wire.messages import EngineInfo

STEP_SECONDS = float(os.environ.get("FAKE_STEP_SECONDS", "0"))
LOAD_SECONDS = float(os.environ.get("FAKE_LOAD_SECONDS", "0"))
INFO = {"vocab_size": 300, "max_model_len": 4096, "num_kv_blocks": 4096, "max_request_tokens": 4096} | json.loads(
    os.environ.get("FAKE_INFO", "{}")
)


class Executor(FakeExecutor):
    def __init__(self, config: EngineConfig, on_phase: Callable[[str, str], None]) -> None:
        limits = {"max_num_seqs": min(config.scheduler.max_num_seqs, 64), "max_num_batched_tokens": 2048}
        super().__init__(info(**limits | INFO), before_step=lambda: time.sleep(STEP_SECONDS))
        self.on_phase = on_phase

    def load(self) -> EngineInfo:
        self.on_phase("weights", "of the fake model")
        time.sleep(LOAD_SECONDS)
        return super().load()


if __name__ == "__main__":
    sys.exit(main(make_executor=Executor))
