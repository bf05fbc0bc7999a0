"""All requests that have not ended: where each of them is, what it holds, and what the worker is yet to be told."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Sequence
from operator import attrgetter

from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.limits import Limit
from octavo.core.request import Request, RequestStatus
from octavo.wire.messages import EngineCoreOutput

logger = logging.getLogger("octavo.core")

_order = attrgetter("order")


class LiveRequests:
    """A request waits, or runs in a slot with its part of every limit. The scheduler alone moves it."""

    def __init__(self, num_slots: int, kv: KVCacheManager, limits: Sequence[Limit]) -> None:
        self.by_id: dict[int, Request] = {}
        self.waiting: list[Request] = []  # sorted by order
        self.running: list[Request] = []  # sorted by order
        self.slots: list[Request | None] = [None] * num_slots
        self.num_needing_output = 0  # of those that run
        self.num_preemptions = 0
        # Since the last plan: slots that were freed, blocks that the host is to keep, and those it need no more.
        self.finished_slots: list[int] = []
        self.swap_out: list[tuple[int, list[int]]] = []
        self.swap_dropped: list[int] = []
        self._kv = kv
        self._limits = limits

    def add(self, request: Request) -> None:
        self.by_id[request.request_id] = request
        insort(self.waiting, request, key=_order)

    def enter(self, request: Request) -> None:
        """Let a request run that has left `waiting` and been given its slot by the limits."""
        request.status = RequestStatus.RUNNING
        self.slots[request.slot] = request
        insort(self.running, request, key=_order)
        self.num_needing_output += request.needs_output

    def finish(self, request: Request, *, forget: bool = False) -> None:
        """`forget`: what was computed for it is in doubt, and must not serve others."""
        if request.status is RequestStatus.RUNNING:
            self._leave(request, forget=forget)
        else:
            _remove_sorted(self.waiting, request)
            self.drop_swapped(request)
        request.status = RequestStatus.FINISHED
        del self.by_id[request.request_id]

    def end(self, request: Request, reason: str, error: str | None = None) -> EngineCoreOutput:
        """`finish` for another reason than its tokens; the output that says so."""
        self.finish(request, forget=reason == "error")
        return EngineCoreOutput(request.request_id, [], reason, error=error)

    def preempt(self, request: Request) -> None:
        """Back to the queue. Its tokens stay, its blocks go: to the host, or it computes them anew, unless they are
        still in the cache then."""
        if block_ids := self._kv.swap_out(request):
            self.swap_out.append((request.request_id, block_ids))
        self._leave(request, forget=False)
        request.status = RequestStatus.PREEMPTED
        insort(self.waiting, request, key=_order)
        self.num_preemptions += 1
        if self.num_preemptions % 50 == 1:
            logger.warning("The KV cache is full: a request was preempted (%d so far).", self.num_preemptions)

    def drop_swapped(self, request: Request) -> None:
        """What the host keeps of a preempted request is of no use any more."""
        if request.num_swapped_tokens:
            self._kv.drop_swapped(request)
            self.swap_dropped.append(request.request_id)

    def _leave(self, request: Request, *, forget: bool) -> None:
        """Take a running request off its slot and its blocks."""
        _remove_sorted(self.running, request)
        self.num_needing_output -= request.needs_output
        self.slots[request.slot] = None
        self.finished_slots.append(request.slot)
        for limit in self._limits:
            limit.leave(request, forget=forget)
        request.unsent_token_ids, request.unsent_block_ids = [], []
        request.draft_token_ids, request.draft_places = [], []
        request.num_in_flight_tokens = request.num_expected_tokens = 0


def _remove_sorted(queue: list[Request], request: Request) -> None:
    index = bisect_left(queue, request.order, key=_order)
    assert queue[index] is request
    del queue[index]
