"""How large the KV cache is made, and why; and its arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from octavo.base.config import CacheConfig
from octavo.base.errors import InvalidConfig
from octavo.base.host import gib
from octavo.cache.spec import CacheGroup, capacity_tokens, max_sequence_blocks
from octavo.device.base import CacheBudget

GIB = 1 << 30
#: Block 0 takes the writes of padding and belongs to no request.
NUM_NULL_BLOCKS = 1


@dataclass(frozen=True)
class KVCachePlan:
    """num_blocks counts the null block too; `reason` is one line for the start-up report. `max_request_tokens`: the
    longest sequence that fits the empty cache."""

    num_blocks: int
    block_size: int
    bytes_per_block: int
    max_model_len: int
    max_request_tokens: int
    reason: str

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block


#: The shapes of one block of a layer, one an array.
BlockShapes = tuple[tuple[int, ...], ...]


def block_values(groups: Sequence[CacheGroup], shapes: Sequence[BlockShapes]) -> int:
    """Values of a block: as many as the layers of any group keep in one. `shapes`: of each layer."""
    return max((sum(_num_values(shapes[layer]) for layer in group.layers) for group in groups), default=0)


def kv_caches(
    groups: Sequence[CacheGroup],
    shapes: Sequence[BlockShapes],
    num_blocks: int,
    dtype: torch.dtype,
    zeros: Callable[[tuple[int, ...], torch.dtype], torch.Tensor],
) -> list[tuple[torch.Tensor, ...]]:
    """The arrays of each layer, [num_blocks, ...] with the rest as `shapes` has it.

    Where the i-th layers of all groups have the same shapes, they share arrays of their own. Else a block is a page in
    one array, in which the layers of its group lie one behind the other: their arrays are views with gaps between
    blocks.
    """
    columns = list(zip_longest(*(group.layers for group in groups)))
    caches: dict[int, tuple[torch.Tensor, ...]] = {}
    if all(len({shapes[layer] for layer in column if layer is not None}) == 1 for column in columns):
        for column in columns:
            layers = [layer for layer in column if layer is not None]
            arrays = tuple(zeros((num_blocks, *shape), dtype) for shape in shapes[layers[0]])
            caches |= dict.fromkeys(layers, arrays)
    else:
        pages = zeros((num_blocks, block_values(groups, shapes)), dtype)
        for group in groups:
            first = 0
            for layer in group.layers:
                views = []
                for shape in shapes[layer]:
                    end = first + math.prod(shape)
                    strides = torch.empty(shape, device="meta").stride()
                    views.append(pages.as_strided((num_blocks, *shape), (pages.stride(0), *strides), first))
                    first = end
                caches[layer] = tuple(views)
    return [caches[layer] for layer in range(len(caches))]


def _num_values(shapes: BlockShapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


def plan_kv_cache(
    config: CacheConfig,
    *,
    bytes_per_block: int,
    max_model_len: int,
    max_model_len_given: bool,
    max_num_seqs: int,
    budget: CacheBudget,
    windows: Sequence[int] = (0,),
    step_tokens: int = 1,
    encoder_blocks: int = 0,
) -> KVCachePlan:
    """Decide the number of blocks. `windows`: of each group of layers, 0 for one that keeps all keys; a step computes
    at most `step_tokens` of one prompt. `encoder_blocks`: what a request has beside its tokens, at most.

    An explicit number of blocks or bytes is obeyed, if the device has the memory: it would be taken as requests come,
    and the system would kill the engine in the middle of one. Otherwise the cache gets what the device allows it, at
    most what the largest batch of full-length requests can use, and at most the device's default or two full-length
    requests.
    When one full-length request does not fit: an error if the user asked for that length, else a shorter context.
    Where no layer keeps keys, there are no blocks to decide on: sequences are as long as the model's positions.

    Raises InvalidConfig with the numbers when the memory is not there, and when no request could run.
    """
    block_size = config.block_size
    if not windows:
        return _no_kv_cache(config, max_model_len, budget)
    blocks_per_request = encoder_blocks + max_sequence_blocks(windows, max_model_len, block_size, step_tokens)
    not_tokens = NUM_NULL_BLOCKS + encoder_blocks

    def planned(num_blocks: int, reason: str) -> KVCachePlan:
        room = capacity_tokens(windows, num_blocks - not_tokens, block_size, step_tokens)
        return KVCachePlan(num_blocks, block_size, bytes_per_block, max_model_len, min(max_model_len, room), reason)

    least = len(windows) + encoder_blocks  # of a request with one token
    if config.num_kv_blocks_override is not None:
        given = f"--num-kv-blocks-override {config.num_kv_blocks_override}"
        if config.num_kv_blocks_override < least:
            raise InvalidConfig(f"{given}: no request of this model fits so few blocks. Give at least {least}.")
        num_blocks = config.num_kv_blocks_override + NUM_NULL_BLOCKS
        _check_fits(given, num_blocks * bytes_per_block, budget)
        return planned(num_blocks, "as --num-kv-blocks-override says")

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
    room = capacity_tokens(windows, num_blocks - not_tokens, block_size, step_tokens)
    if room < block_size:
        raise InvalidConfig(
            f"The KV cache has room for no block: a block of {block_size} tokens needs "
            f"{least * bytes_per_block:,} bytes, and one more block is octavo's own; "
            f"available are {available:,} ({reason})."
        )
    if room < max_model_len:
        if max_model_len_given:
            raise InvalidConfig(
                f"--max-model-len {max_model_len} does not fit the KV cache, which holds {room} tokens ({reason}). "
                + _advice((blocks_per_request + NUM_NULL_BLOCKS) * bytes_per_block, budget)
            )
        reason += f"; context cut from {max_model_len} to {room} tokens to fit"
        max_model_len = room
    return planned(num_blocks, reason)


def _no_kv_cache(config: CacheConfig, max_model_len: int, budget: CacheBudget) -> KVCachePlan:
    """Of a model all of whose layers keep states, which are part of what steps take. It needs none of the bytes that
    its KV cache may have."""
    if config.num_kv_blocks_override is not None:
        raise InvalidConfig(
            f"--num-kv-blocks-override {config.num_kv_blocks_override}: no layer of this model has attention, so that "
            f"there are no blocks. Leave it out."
        )
    if budget.num_bytes <= 0:
        raise InvalidConfig(
            f"The states of the sequences and the buffers of a step do not fit the memory: {budget.reason}. "
            f"Give a lower --max-num-seqs or --max-num-batched-tokens."
        )
    num_blocks = NUM_NULL_BLOCKS + 1  # a pool has a block to give, which nobody asks for
    return KVCachePlan(num_blocks, config.block_size, 0, max_model_len, max_model_len, "no layer has attention")


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
