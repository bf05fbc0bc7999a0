"""The size of the KV cache: flags are obeyed, defaults are bounded, and what cannot work is refused with numbers."""

import pytest

from octavo.config import CacheConfig
from octavo.device.base import CacheBudget
from octavo.device.cpu import DEFAULT_CACHE_BYTES
from octavo.errors import InvalidConfig
from octavo.worker.kv_memory import GIB, KVCachePlan, plan_kv_cache


def plan(cache: CacheConfig | None = None, **changes: object) -> KVCachePlan:
    arguments: dict[str, object] = {
        "bytes_per_block": 16_000,
        "max_model_len": 2048,
        "max_model_len_given": False,
        "max_num_seqs": 4,
        "budget": CacheBudget(32 * GIB, "50% of 64.0 GiB free", DEFAULT_CACHE_BYTES),
    }
    return plan_kv_cache(cache or CacheConfig(), **(arguments | changes))  # type: ignore[arg-type]


def test_the_cache_is_no_larger_than_the_largest_batch_can_use() -> None:
    result = plan()
    assert result.num_blocks == 4 * 2048 // 16 + 1
    assert result.max_request_tokens == 2048


def test_the_default_bound_holds_on_a_large_machine() -> None:
    result = plan(max_num_seqs=100_000)
    assert DEFAULT_CACHE_BYTES - 16_000 < result.total_bytes <= DEFAULT_CACHE_BYTES


def test_two_full_length_requests_fit_even_past_the_default_bound() -> None:
    result = plan(max_model_len=4_000_000)
    assert result.num_blocks >= 2 * 250_000
    assert result.max_model_len == 4_000_000


def test_the_cache_takes_its_share_of_a_small_machine_and_the_context_is_cut_to_fit() -> None:
    result = plan(budget=CacheBudget(1_000_000, "half of it", DEFAULT_CACHE_BYTES))
    assert result.total_bytes <= 1_000_000
    assert result.max_model_len == result.max_request_tokens == (result.num_blocks - 1) * 16
    assert "2048" in result.reason


def test_a_context_that_was_asked_for_is_never_cut_in_silence() -> None:
    with pytest.raises(InvalidConfig, match=r"--max-model-len 2048 .* holds 976 tokens"):
        plan(budget=CacheBudget(1_000_000, "half of it", DEFAULT_CACHE_BYTES), max_model_len_given=True)


def test_explicit_sizes_are_obeyed() -> None:
    assert plan(CacheConfig(kv_cache_memory_bytes=160_000_000)).num_blocks == 10_000
    overridden = plan(CacheConfig(num_kv_blocks_override=8))
    assert overridden.num_blocks == 9
    assert (overridden.max_model_len, overridden.max_request_tokens) == (2048, 128)


def test_a_cache_without_a_block_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="16,000 bytes"):
        plan(CacheConfig(kv_cache_memory_bytes=20_000))
