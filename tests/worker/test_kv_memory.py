"""The size of the KV cache: flags are obeyed, defaults are bounded, and what cannot work is refused with numbers."""

import pytest

from octavo.base.config import CacheConfig
from octavo.base.errors import InvalidConfig
from octavo.base.host import FreeMemory
from octavo.device.base import CacheBudget
from octavo.device.cpu import DEFAULT_CACHE_BYTES
from octavo.worker.kv_memory import GIB, KVCachePlan, plan_kv_cache

SMALL = CacheBudget(1_000_000, "half of it", FreeMemory(2_000_000, "here"), DEFAULT_CACHE_BYTES)


def plan(cache: CacheConfig | None = None, **changes: object) -> KVCachePlan:
    arguments: dict[str, object] = {
        "bytes_per_block": 16_000,
        "max_model_len": 2048,
        "max_model_len_given": False,
        "max_num_seqs": 4,
        "budget": CacheBudget(32 * GIB, "50% of 64.0 GiB free", FreeMemory(64 * GIB, "here"), DEFAULT_CACHE_BYTES),
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
    result = plan(budget=SMALL)
    assert result.total_bytes <= 1_000_000
    assert result.max_model_len == result.max_request_tokens == (result.num_blocks - 1) * 16
    assert "2048" in result.reason


def test_a_context_that_was_asked_for_is_never_cut_in_silence() -> None:
    with pytest.raises(InvalidConfig, match=r"--max-model-len 2048 .* holds 976 tokens"):
        plan(
            budget=CacheBudget(1_000_000, "half of it", FreeMemory(2_000_000, "here"), DEFAULT_CACHE_BYTES),
            max_model_len_given=True,
        )


def test_explicit_sizes_are_obeyed() -> None:
    assert plan(CacheConfig(kv_cache_memory_bytes=160_000_000)).num_blocks == 10_000
    overridden = plan(CacheConfig(num_kv_blocks_override=8))
    assert overridden.num_blocks == 9
    assert (overridden.max_model_len, overridden.max_request_tokens) == (2048, 128)


def test_a_cache_without_a_block_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="16,000 bytes"):
        plan(CacheConfig(kv_cache_memory_bytes=20_000))


def test_so_few_blocks_that_no_request_fits_are_refused() -> None:
    for needs in ({"windows": (0, 32)}, {"windows": (0,), "encoder_blocks": 1}):
        with pytest.raises(InvalidConfig, match="--num-kv-blocks-override 1: no request .* Give at least 2"):
            plan(CacheConfig(num_kv_blocks_override=1), **needs)
        assert plan(CacheConfig(num_kv_blocks_override=2), **needs).max_request_tokens == 16


def test_more_than_there_is_is_refused_with_what_was_asked_and_what_is_free() -> None:
    """The pages would be taken as requests come: the engine would be killed hours after a start without a word."""
    budget = CacheBudget(12 * GIB, "50% of it", FreeMemory(24 * GIB, "on this machine"), DEFAULT_CACHE_BYTES)
    with pytest.raises(InvalidConfig, match=r"--kv-cache-memory-bytes .* 900\.0 GiB .* 24\.0 GiB free on this machine"):
        plan(CacheConfig(kv_cache_memory_bytes=900 * GIB), budget=budget)
    with pytest.raises(InvalidConfig, match=r"--num-kv-blocks-override 2000000 .* 29\.8 GiB .* 24\.0 GiB free"):
        plan(CacheConfig(num_kv_blocks_override=2_000_000), budget=budget)
    assert plan(CacheConfig(kv_cache_memory_bytes=24 * GIB), budget=budget).total_bytes <= 24 * GIB


def test_advice_for_a_long_context_can_be_followed() -> None:
    roomy = CacheBudget(1_000_000, "half of it", FreeMemory(3_000_000, "here"), DEFAULT_CACHE_BYTES)
    with pytest.raises(InvalidConfig, match="--kv-cache-memory-bytes 2064000 or ask for a shorter"):
        plan(budget=roomy, max_model_len_given=True)
    asked = CacheConfig(kv_cache_memory_bytes=2064000)
    assert plan(asked, budget=roomy, max_model_len_given=True).max_model_len == 2048
    with pytest.raises(InvalidConfig, match="needs 2 MiB, and there are 2 MiB free here: ask for a shorter") as caught:
        plan(budget=SMALL, max_model_len_given=True)
    assert "--kv-cache-memory-bytes" not in caught.value.message.split("). ")[1]


def test_without_attention_there_is_nothing_to_decide() -> None:
    result = plan(windows=(), bytes_per_block=0, max_model_len=1 << 20)
    assert (result.total_bytes, result.max_model_len, result.max_request_tokens) == (0, 1 << 20, 1 << 20)
    assert plan(CacheConfig(kv_cache_memory_bytes=1_000), windows=(), bytes_per_block=0) == plan(
        windows=(), bytes_per_block=0
    )
    with pytest.raises(InvalidConfig, match="--num-kv-blocks-override 8: no layer of this model has attention"):
        plan(CacheConfig(num_kv_blocks_override=8), windows=(), bytes_per_block=0)
    full = CacheBudget(0, "0% of it, with 90.0 GiB kept for steps", FreeMemory(0, "here"), DEFAULT_CACHE_BYTES)
    with pytest.raises(InvalidConfig, match="with 90.0 GiB kept for steps. Give a lower --max-num-seqs"):
        plan(windows=(), bytes_per_block=0, budget=full)
