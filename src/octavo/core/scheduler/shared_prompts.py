"""Waiting for the blocks of a prompt that another request is just computing.

Samples of one prompt, or questions about one document, that arrive together would each compute the same. The first
computes it, the others take its blocks from the prefix cache. No deadlock: who is waited for runs, and running prompts
always go on; should it be preempted or end early, nobody waits for it any more.
"""

from __future__ import annotations

from collections.abc import Iterable

from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.request import Request, RequestStatus


class Frontier:
    """The blocks that running prompts are computing next: hash -> whose it is."""

    def __init__(self, prefilling: Iterable[Request]) -> None:
        self._requests: dict[bytes, Request] = {}
        for request in prefilling:
            self.add(request)

    def add(self, request: Request) -> None:
        """A prompt that is being computed: its first full block that is not finished, if it has one."""
        index = request.num_cached_blocks
        if index < len(request.block_hashes):
            self._requests[request.block_hashes[index]] = request

    def holds_up(self, request: Request, num_hits: int, kv: KVCacheManager) -> bool:
        """Whether at least half of the full blocks that `request` lacks are just being computed by another. It then
        waits for them: `still_waits`."""
        num_missing = kv.num_shareable_blocks(request) - num_hits
        if not self._requests or num_missing <= 0 or request.num_swapped_tokens:
            return False
        other = self._requests.get(request.block_hashes[num_hits])
        if other is None:
            return False
        # Hashes are chained: equal in the middle means equal up to there.
        middle = num_hits + num_missing // 2
        hashes = other.block_hashes
        if middle >= len(hashes) or hashes[middle] != request.block_hashes[middle]:
            return False
        request.waits_for = (other, middle)
        return True


def still_waits(request: Request) -> bool:
    """Whether the request that this one waited for in the last step has still not come as far as it should."""
    if request.waits_for is not None:
        other, index = request.waits_for
        if other.status is RequestStatus.RUNNING and other.num_cached_blocks <= index:
            return True
        request.waits_for = None  # look again: there may be hits now, or somebody else to wait for
    return False
