"""What holds after every event; ids as in the list of invariants of the scheduler's tests."""

from __future__ import annotations

import struct
from collections import Counter

from core.fake import FakeExecutor
from octavo.cache.spec import first_needed_block, max_group_blocks
from octavo.core.blocks.block_pool import NULL_BLOCK_ID
from octavo.core.blocks.kv_cache_manager import hash_block, hash_salt
from octavo.core.request import RequestStatus
from octavo.core.scheduler.scheduler import Scheduler
from octavo.wire.step import SchedulerOutput


def check_state(scheduler: Scheduler) -> None:
    """I1: every request is in exactly one state and place. I6: nothing else is remembered."""
    waiting, running = scheduler.waiting, scheduler.running
    assert {id(r) for r in waiting} | {id(r) for r in running} == {id(r) for r in scheduler.requests.values()}
    assert len(waiting) + len(running) == len(scheduler.requests)
    assert waiting == sorted(waiting, key=lambda r: r.order) and running == sorted(running, key=lambda r: r.order)
    for request in waiting:
        assert request.status in (RequestStatus.WAITING, RequestStatus.PREEMPTED)
        assert (request.slot, request.block_tables, request.num_computed_tokens) == (-1, [], 0)
        assert request.num_swapped_tokens == 0 or request.status is RequestStatus.PREEMPTED
    for request in running:
        assert request.num_swapped_tokens == 0
        assert request.status is RequestStatus.RUNNING and scheduler.slots[request.slot] is request
        assert request.num_computed_tokens < request.num_tokens <= request.limit_tokens
    taken = [slot for slot, request in enumerate(scheduler.slots) if request is not None]
    assert len(taken) == len(running)
    assert sorted(taken + scheduler._slots.free) == list(range(scheduler.max_num_seqs))


def check_blocks(scheduler: Scheduler) -> None:
    """I5: reference counts equal users; every block is in exactly one place."""
    pool = scheduler.kv.pool
    kv, running = scheduler.kv, scheduler.running
    users = Counter(block_id for request in running for table in request.block_tables for block_id in table)
    del users[NULL_BLOCK_ID]
    for request in scheduler.running:
        for num_blocks in [min(map(len, request.block_tables))] if kv.windows else []:
            assert num_blocks * kv.block_size == request.num_allocated_tokens
        for table, window in zip(request.block_tables, kv.windows, strict=True):
            # What no later token sees has been given back, and nothing else.
            first = first_needed_block(window, request.num_computed_tokens, kv.block_size)
            assert table[:first] == [NULL_BLOCK_ID] * first and NULL_BLOCK_ID not in table[first:]
            assert len(set(table[first:])) == len(table) - first
            if request.matcher is None and not request.is_drafted:
                step_tokens = kv.step_tokens + request.num_in_flight_tokens
                assert len(table) - first <= max_group_blocks(window, len(table), kv.block_size, step_tokens)
    for block in pool.blocks:
        assert block.ref_count == users[block.block_id]
    free = [*pool._unnamed, *pool._evictable]
    assert len(free) == pool.num_free
    assert sorted([*free, *users]) == list(range(1, len(pool.blocks)))
    assert scheduler.kv.num_blocks_used == len(users)


def check_swap(scheduler: Scheduler, executor: FakeExecutor, num_swap_blocks: int) -> None:
    """The host keeps the blocks of those that wait for them, and no others; its room is not overdrawn."""
    kept = {r.request_id: r.num_swapped_blocks for r in scheduler.waiting if r.num_swapped_tokens}
    size, windows = scheduler.kv.block_size, scheduler.kv.windows
    for request in scheduler.waiting:
        num = request.num_swapped_tokens
        seen = [-(-num // size) - first_needed_block(window, num, size) for window in windows]
        assert request.num_swapped_blocks == sum(seen) * (num > 0)
    assert scheduler.kv.num_free_swap_blocks + sum(kept.values()) == num_swap_blocks
    assert scheduler.kv.num_free_swap_blocks >= 0
    assert scheduler.stats().num_swapped == len(kept)
    told = {request_id: len(blocks) for request_id, blocks in executor.swapped.items()}
    told |= {request_id: len(blocks) for request_id, blocks in scheduler.live.swap_out}
    for request_id in scheduler.live.swap_dropped:
        told.pop(request_id, None)
    assert told == kept


def check_cache(scheduler: Scheduler, executor: FakeExecutor) -> None:
    """I9: a cached block's hash is that of what is in it and before it. I11: others are not found."""
    pool = scheduler.kv.pool
    cached = [block for block in pool.blocks if block.node is not None]
    for block in cached:
        node = block.node
        assert node is not None and node.blocks[block.group] is block and pool._nodes[node.block_hash] is node
        assert executor.pool[block.block_id] == list(struct.unpack_from(f"<{scheduler.kv.block_size}I", node.key))
        parent = hash_salt(node.parent) if isinstance(node.parent, str) else node.parent.block_hash
        assert node.block_hash == hash_block(parent, node.key)
    children = Counter(id(node.parent) for node in pool._nodes.values())
    for block_hash, node in pool._nodes.items():
        assert node.block_hash == block_hash and node.num_children == children[id(node)]
        assert node.blocks or node.num_children
    assert len(cached) == pool.num_cached
    assert all(pool.blocks[block_id].node is None for block_id in pool._unnamed)
    assert all(pool.blocks[block_id].node is not None for block_id in pool._evictable)


def check_plan(scheduler: Scheduler, plan: SchedulerOutput, *, ahead: bool = False) -> None:
    """I2: work goes on. I8: no block is written that another may read. I10: one token is computed. I20: limits.

    `ahead`: the plan was made before the last was answered.
    """
    counts = plan.num_scheduled_tokens
    assert ahead or bool(counts) == bool(scheduler.requests), "requests wait, but the step is empty"
    assert plan.total_num_scheduled_tokens == sum(counts.values()) <= scheduler.max_num_batched_tokens
    drafts = {data.slot: len(data.draft_token_ids) for data in plan.cached_requests}
    # Of prompts, or what a grammar dictated.
    prompt_tokens = sum(count for slot, count in counts.items() if count - drafts.get(slot, 0) > 1)
    assert prompt_tokens <= scheduler.max_num_prefill_tokens or any(data.new_token_ids for data in plan.cached_requests)
    assert len(counts) <= scheduler.max_num_seqs and all(count > 0 for count in counts.values())
    sent = [data.slot for data in (*plan.cached_requests, *plan.new_requests)]
    assert sorted(sent) == sorted(counts)
    size, written = scheduler.kv.block_size, Counter[int]()
    for slot, count in counts.items():
        request = scheduler.slots[slot]
        assert request is not None
        start = request.num_computed_tokens + request.num_in_flight_tokens - count
        assert ahead or start == request.num_computed_tokens
        assert list(request.draft_token_ids) == next(
            (list(data.draft_token_ids) for data in plan.cached_requests if data.slot == slot), []
        )
        num_known = request.num_tokens + drafts.get(slot, 0) + (ahead and request.num_expected_tokens == 2)
        assert not drafts.get(slot) or (not ahead and start + count == num_known > request.num_prompt_tokens)
        assert start + count <= min(num_known, request.num_allocated_tokens)
        assert num_known <= request.limit_tokens - 1 or num_known == request.num_tokens
        for index in range(start // size, (start + count - 1) // size + 1):
            for table in request.block_tables:
                block = scheduler.kv.pool.blocks[table[index]]
                assert block.ref_count == 1 and block.node is None
                written[block.block_id] += 1
    assert not written or max(written.values()) == 1
    for new in plan.new_requests:
        assert new.num_computed_tokens < len(new.prompt_token_ids)
        if not scheduler.enable_chunked_prefill:
            assert new.num_computed_tokens + counts[new.slot] == len(new.prompt_token_ids)


def check_idle(scheduler: Scheduler) -> None:
    """I5, I6: when all has ended nothing is held but the cache, and that can be cleared."""
    assert not scheduler.has_work and not scheduler.waiting and not scheduler.running
    assert scheduler.kv.num_blocks_used == 0
    assert scheduler.stats().num_running == scheduler.stats().num_waiting == 0
    scheduler.reset_prefix_cache()
    pool = scheduler.kv.pool
    assert pool.num_cached == 0 and len(pool._unnamed) == pool.num_usable


def check_all(scheduler: Scheduler, executor: FakeExecutor) -> None:
    check_state(scheduler)
    check_blocks(scheduler)
    check_swap(scheduler, executor, executor.info.num_swap_blocks)
    check_cache(scheduler, executor)
