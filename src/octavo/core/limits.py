"""What there is only so much of: the tokens of a step, slots, KV blocks.

A waiting request is admitted when every limit has room for it, with as many tokens as the narrowest leaves. A feature
that brings something scarce of its own adds a limit to `Scheduler.limits`; the scheduler asks it like the others.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from octavo.core.blocks.block_pool import PrefixNode
from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.request import Request


class Candidate(NamedTuple):
    """A waiting request whose turn it is, and what the cache has of its first tokens."""

    request: Request
    computed: list[PrefixNode]


class Limit(Protocol):
    """Called by the scheduler alone. Where nothing runs it must have room for one token of any request that was not
    refused when it came: or nothing would ever run."""

    def room(self, candidate: Candidate, count: int) -> int:
        """How many of the next `count` tokens may be computed in this step; 0: the request waits, and all behind it.
        Where prompts are not chunked it is all or none.

        Changes nothing: another limit may have no room.
        """
        ...

    def take(self, candidate: Candidate, count: int) -> None:
        """The request is admitted, with `count` tokens in this step. All limits had room for them."""
        ...

    def leave(self, request: Request, *, forget: bool) -> None:
        """It runs no more: it has ended, or was preempted. `forget`: what was computed for it is in doubt, and must
        not serve others."""
        ...


class TokenLimit:
    """Tokens of a step; `left` is set by the scheduler before it admits anyone."""

    def __init__(self, is_chunked: bool) -> None:
        """`is_chunked`: a prompt may be spread over several steps."""
        self.is_chunked = is_chunked
        self.left = 0

    def room(self, candidate: Candidate, count: int) -> int:
        return count if count <= self.left else self.left * self.is_chunked

    def take(self, candidate: Candidate, count: int) -> None:
        self.left -= count

    def leave(self, request: Request, *, forget: bool) -> None:
        """A step's tokens are used up when it is planned."""


class EncoderLimit:
    """Rows of encoders' inputs, which are encoded in the step in which their request is admitted; `left` is set by the
    scheduler before it admits anyone."""

    def __init__(self, num_rows: int) -> None:
        """`num_rows`: of a step, no fewer than the longest input has."""
        self.num_rows = num_rows
        self.left = num_rows

    def room(self, candidate: Candidate, count: int) -> int:
        return count if candidate.request.num_encoder_rows <= self.left else 0

    def take(self, candidate: Candidate, count: int) -> None:
        self.left -= candidate.request.num_encoder_rows

    def leave(self, request: Request, *, forget: bool) -> None:
        """A step's rows are used up when it is planned."""


class SlotLimit:
    """The worker's places for running requests."""

    def __init__(self, num_slots: int) -> None:
        self.free = list(range(num_slots - 1, -1, -1))

    def room(self, candidate: Candidate, count: int) -> int:
        return count if self.free else 0

    def take(self, candidate: Candidate, count: int) -> None:
        candidate.request.slot = self.free.pop()

    def leave(self, request: Request, *, forget: bool) -> None:
        self.free.append(request.slot)
        request.slot = -1


class BlockLimit:
    """KV blocks: a request gets those of all its tokens when it is admitted."""

    def __init__(self, kv: KVCacheManager) -> None:
        self._kv = kv
        self._num_running = 0

    def room(self, candidate: Candidate, count: int) -> int:
        return count if self._kv.fits(candidate.request, candidate.computed, keep_free=self._keep_free) else 0

    def take(self, candidate: Candidate, count: int) -> None:
        is_admitted = self._kv.admit(candidate.request, candidate.computed, keep_free=self._keep_free)
        assert is_admitted, "room() comes first"
        self._num_running += 1

    def leave(self, request: Request, *, forget: bool) -> None:
        self._num_running -= 1
        self._kv.free(request, forget=forget)

    @property
    def _keep_free(self) -> int:
        """Blocks that those who run already may need next."""
        return self._kv.watermark if self._num_running else 0
