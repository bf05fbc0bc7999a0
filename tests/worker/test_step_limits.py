"""How many tokens a step computes, and how many of them may be of prompts."""

from typing import Any

import pytest

from octavo.base.config import EngineConfig, SchedulerConfig
from octavo.base.errors import InvalidConfig
from octavo.worker.step_sizes import max_num_batched_tokens, max_num_prefill_tokens
from worker.devices import HostDevice


def limits(**settings: Any) -> tuple[int, int]:
    config = EngineConfig(scheduler=SchedulerConfig(**settings))
    batched = max_num_batched_tokens(config, 4096, HostDevice(), is_whole=False)
    return batched, max_num_prefill_tokens(config, batched, HostDevice())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (512, 128)),
        ({"max_num_batched_tokens": 100}, (100, 100)),
        ({"max_num_batched_tokens": 2048}, (2048, 2048)),
        ({"max_num_prefill_tokens": 300}, (512, 300)),
        ({"max_num_batched_tokens": 2048, "max_num_prefill_tokens": 300}, (2048, 300)),
        ({"enable_chunked_prefill": False}, (4096, 4096)),
    ],
)
def test_prompts_are_bounded_as_asked_or_as_large_steps_are(settings: Any, expected: tuple[int, int]) -> None:
    assert limits(**settings) == expected


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_num_prefill_tokens": 513}, "--max-num-prefill-tokens 513 is more than the 512 tokens of a step"),
        ({"max_num_prefill_tokens": 64, "enable_chunked_prefill": False}, "--no-enable-chunked-prefill"),
    ],
)
def test_a_bound_that_cannot_hold_is_refused(settings: Any, told: str) -> None:
    with pytest.raises(InvalidConfig, match=told):
        limits(**settings)
