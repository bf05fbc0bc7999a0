"""How large the KV cache is made, and why."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.config import CacheConfig
from octavo.device.base import CacheBudget
from octavo.errors import InvalidConfig
from octavo.host import gib

GIB = 1 << 30
#: Block 0 takes the writes of padding and belongs to no request.
NUM_NULL_BLOCKS = 1


@dataclass(frozen=True)
class KVCachePlan:
    """num_blocks counts the null block too; `reason` is one line for the start-up report."""

    num_blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int
    reason: str

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block

    @property
    def max_request_tokens(self) -> int:
        """The longest sequence that fits the empty cache."""
        return min(self.max_model_len, (self.num_blocks - NUM_NULL_BLOCKS) * self.block_size)


def plan_kv_cache(
    config: CacheConfig,
    *,
    bytes_per_block: int,
    max_model_len: int,
    max_model_len_given: bool,
    max_num_seqs: int,
    budget: CacheBudget,
) -> KVCachePlan:
    """Decide the number of blocks.

    An explicit number of blocks or bytes is obeyed, if the device has the memory: it would be taken as requests come,
    and the system would kill the engine in the middle of one. Otherwise the cache gets what the device allows it, at
    most what the largest batch of full-length requests can use, and at most the device's default or two full-length
    requests.
    When one full-length request does not fit: an error if the user asked for that length, else a shorter context.

    Raises InvalidConfig with the numbers when the memory is not there, and when no request could run.
    """
    block_size = config.block_size
    blocks_per_request = -(-max_model_len // block_size)

    if config.num_kv_blocks_override is not None:
        num_blocks = config.num_kv_blocks_override + NUM_NULL_BLOCKS
        _check_fits(f"--num-kv-blocks-override {config.num_kv_blocks_override}", num_blocks * bytes_per_block, budget)
        return KVCachePlan(num_blocks, block_size, bytes_per_block, max_model_len, "as --num-kv-blocks-override says")

    if config.kv_cache_memory_bytes is not None:
        _check_fits("--kv-cache-memory-bytes", config.kv_cache_memory_bytes, budget)
        available = config.kv_cache_memory_bytes
        reason = "as --kv-cache-memory-bytes says"
    else:
        useful = (max_num_seqs * blocks_per_request + NUM_NULL_BLOCKS) * bytes_per_block
        limits = {budget.reason: budget.num_bytes, f"all that {max_num_seqs} full-length requests can use": useful}
        if budget.default_bytes is not None:
            default = max(budget.default_bytes, 2 * blocks_per_request * bytes_per_block)
            limits["the default; --kv-cache-memory-bytes changes it"] = default
        reason = min(limits, key=lambda name: limits[name])
        available = limits[reason]

    num_blocks = available // bytes_per_block
    room = (num_blocks - NUM_NULL_BLOCKS) * block_size
    if room < block_size:
        raise InvalidConfig(
            f"The KV cache has room for no block: a block of {block_size} tokens needs {bytes_per_block:,} bytes, and "
            f"one more block is octavo's own; available are {available:,} ({reason})."
        )
    if room < max_model_len:
        if max_model_len_given:
            raise InvalidConfig(
                f"--max-model-len {max_model_len} does not fit the KV cache, which holds {room} tokens ({reason}). "
                + _advice((blocks_per_request + NUM_NULL_BLOCKS) * bytes_per_block, budget)
            )
        reason += f"; context cut from {max_model_len} to {room} tokens to fit"
        max_model_len = room
    return KVCachePlan(num_blocks, block_size, bytes_per_block, max_model_len, reason)


def _check_fits(asked: str, num_bytes: int, budget: CacheBudget) -> None:
    if num_bytes > budget.free.num_bytes:
        raise InvalidConfig(
            f"{asked} asks for a KV cache of {gib(num_bytes)} ({num_bytes:,} bytes), and beside the weights "
            f"and the buffers of a step there are {budget.free}. Ask for less, or leave it out for a size that fits."
        )


def _advice(needed: int, budget: CacheBudget) -> str:
    """What to do about a context that needs a cache of so many bytes."""
    if needed > budget.free.num_bytes:
        return f"It needs {gib(needed)}, and there are {budget.free}: ask for a shorter context."
    return f"Give it more with --kv-cache-memory-bytes {needed} or ask for a shorter context."
