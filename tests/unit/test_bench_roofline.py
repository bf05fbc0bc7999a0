"""The time that a batch would take at the machine's limits (K7): each part counted by hand."""

from __future__ import annotations

import msgspec
import pytest

from octavo.bench.limits import Limits
from octavo.bench.roofline import num_steps, roofline_seconds, step_weight_bytes
from octavo.wire.messages import EngineInfo
from support.client_fakes import INFO

#: 10^9 units a second each, but for int8.
LIMITS = Limits(1, 1.0, 1.0, 4.0)


def info(**values: object) -> EngineInfo:
    return msgspec.structs.replace(INFO, **values)


def nanoseconds(requests: list[tuple[int, int, int]], **values: object) -> float:
    return 1e9 * roofline_seconds(info(**values), LIMITS, requests)


def test_matrices_are_multiplied_for_each_token_that_is_computed() -> None:
    # The last sampled token is never computed; each sampled one has its logits.
    assert nanoseconds([(10, 10, 3)], layer_ops_per_token=100) == pytest.approx(1200)
    assert nanoseconds([(10, 10, 3), (1, 1, 1)], output_ops_per_token=100) == pytest.approx(400)
    assert nanoseconds([(4, 10, 3)], layer_ops_per_token=100) == pytest.approx(600)
    assert nanoseconds([(10, 10, 3)], layer_ops_per_token=100, quantization="Q4_1 x2") == pytest.approx(300)


def test_attention_looks_at_all_keys_up_to_the_tokens_own() -> None:
    assert nanoseconds([(4, 4, 1)], attention_ops_per_key=1) == pytest.approx(1 + 2 + 3 + 4)
    assert nanoseconds([(4, 4, 3)], attention_ops_per_key=1) == pytest.approx(10 + 5 + 6)
    assert nanoseconds([(1, 4, 1)], attention_ops_per_key=1) == pytest.approx(4)  # three were cached


def test_a_token_of_a_reply_reads_the_keys_before_it_and_a_step_reads_the_weights() -> None:
    cache = {"kv_cache_bytes": 2 * INFO.num_kv_blocks * INFO.block_size}  # two bytes a token
    assert nanoseconds([(4, 4, 1)], **cache) == 0
    assert nanoseconds([(4, 4, 3)], **cache) == pytest.approx(2 * (5 + 6))
    assert nanoseconds([(4, 4, 3), (4, 4, 2)], weight_bytes=1000) == pytest.approx(3000)


def test_a_step_reads_the_experts_that_its_tokens_go_through() -> None:
    experts = {"weight_bytes": 1000, "expert_bytes": 800, "expert_share": 0.25}
    assert step_weight_bytes(info(**experts), 1) == 200 + 200
    assert step_weight_bytes(info(**experts), 2) == 200 + 350  # 800 x (1 - 0.75 ^ 2)
    assert step_weight_bytes(info(weight_bytes=1000), 3) == 1000
    assert nanoseconds([(4, 4, 3), (4, 4, 3)], **experts) == pytest.approx(3 * 550)


def test_a_model_that_keeps_nothing_of_a_token_has_no_cache_to_read() -> None:
    assert nanoseconds([(4, 4, 3)], num_kv_blocks=0, kv_group_windows=(), weight_bytes=10) == pytest.approx(30)


def test_steps_are_those_of_the_longest_reply_or_of_full_steps() -> None:
    assert num_steps(info(max_num_seqs=4), [(1, 1, 9), (1, 1, 2)]) == 9
    assert num_steps(info(max_num_seqs=4), [(1, 1, 2)] * 10) == 5
