"""Which encoded rows of media the worker keeps, what a step encodes, and how far prompts can be computed with that.

An item is encoded in the step that computes its first token, unless its rows are kept from before: equal items are
encoded once. Rows that a request has begun to read are held until it has read all of them; the others stay as long as
nobody needs their room, the one read last the longest. A chunk of a prompt ends before an item for which a step has no
room. No deadlock: an item that is larger than the room is let in where nothing else is held, and who holds rows has
all that it needs to come to their end.
"""

from __future__ import annotations

from octavo.base.media import MediaItem
from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.limits import Candidate
from octavo.core.request import Request


class MediaLimit:
    """`fit` and `take` are also asked for the chunks of prompts that run already."""

    def __init__(
        self, kv: KVCacheManager, step_rows: int, cache_rows: int, *, is_chunked: bool, stays_whole: bool
    ) -> None:
        """`step_rows`: that one step encodes. `is_chunked`: a prompt may be spread over several steps; if not, all of
        its media are encoded in its step, whatever room there is. `stays_whole`: a chunk never ends within a span."""
        self._kv = kv
        self._step_rows = step_rows
        self.cache_rows = cache_rows
        self._is_chunked = is_chunked
        self._stays_whole = stays_whole
        self._rows: dict[bytes, int] = {}  # of all items that the worker keeps, the one read last at the end
        self._holders: dict[bytes, set[int]] = {}  # ids of requests that are reading an item
        self._held: dict[int, tuple[Request, dict[bytes, int]]] = {}  # by id: digest -> the end of the item's tokens
        self._left = step_rows
        self.encoded: list[MediaItem] = []  # in the step that is being planned
        self.dropped: list[bytes] = []
        self.num_queries = self.num_hits = self.num_rows_encoded = 0

    @property
    def rows_used(self) -> int:
        return sum(self._rows.values())

    def begin_step(self) -> None:
        """A step is planned. What the one before reads to its end is held no more: steps are run in order."""
        self._left = self._step_rows
        for request_id, (request, ends) in list(self._held.items()):
            num_computed = request.num_computed_tokens + request.num_in_flight_tokens
            for digest in [digest for digest, end in ends.items() if end <= num_computed]:
                self._let_go(request_id, digest)

    def take_plan(self) -> tuple[list[bytes], list[MediaItem]]:
        """What the worker is to drop and to encode."""
        dropped, encoded, self.dropped, self.encoded = self.dropped, self.encoded, [], []
        return dropped, encoded

    def fit(self, request: Request, start: int, count: int) -> int:
        """How many of the `count` tokens from `start` on can be computed in this step. Changes nothing."""
        if not self._is_chunked:
            return count
        end, left = start + count, self._left
        room = self.cache_rows - sum(self._rows[digest] for digest in self._holders)
        is_alone = not self._holders
        seen: set[bytes] = set()
        for item in request.media:
            if item.end <= start or item.digest in self._holders or item.digest in seen:
                continue
            if item.offset >= end:
                break
            needed = 0 if item.digest in self._rows else item.rows
            has_left = needed <= left or (left == self._step_rows and needed > left)
            if not has_left or (item.rows > room and not is_alone):
                end = max(start, item.offset)
                break
            left -= needed
            room -= item.rows
            is_alone = False
            seen.add(item.digest)
        return (self._whole(request, start, end) if self._stays_whole else end) - start

    def _whole(self, request: Request, start: int, end: int) -> int:
        """`end`, or the start of the span that it would cut."""
        for item in request.media:
            for first, length in item.spans:
                if first < end < first + length:
                    return max(start, first)
        return end

    def claim(self, request: Request, start: int, count: int) -> None:
        """The request computes so many tokens from `start` on: `fit` had room for them."""
        touched = [item for item in request.media if item.end > start and item.offset < start + count]
        for item in touched:  # all are held before any of them takes the room of another
            _, ends = self._held.setdefault(request.request_id, (request, {}))
            if item.digest not in ends:
                self.num_queries += 1
                self.num_hits += item.digest in self._rows
            ends[item.digest] = max(item.end, ends.get(item.digest, 0))
            self._holders.setdefault(item.digest, set()).add(request.request_id)
        for item in touched:
            if item.digest in self._rows:
                self._rows[item.digest] = self._rows.pop(item.digest)
            else:
                self._encode(item)

    def _encode(self, item: MediaItem) -> None:
        used = self.rows_used
        for digest in list(self._rows):
            if used + item.rows <= self.cache_rows:
                break
            if digest not in self._holders:
                used -= self._rows.pop(digest)
                self.dropped.append(digest)
        self._rows[item.digest] = item.rows
        self._left -= item.rows
        self.encoded.append(item)
        self.num_rows_encoded += item.rows

    def forget(self, encoded: list[MediaItem], dropped: list[bytes]) -> None:
        """A step did not happen that was to encode and to drop these."""
        for item in encoded:
            self._rows.pop(item.digest, None)
            self._holders.pop(item.digest, None)
        self.dropped = [*dropped, *self.dropped]

    def clear(self) -> None:
        """The worker has forgotten all rows; nobody holds any."""
        self._rows, self._holders, self._held, self.dropped = {}, {}, {}, []

    def stats(self) -> dict[str, int]:
        """Fields of `SchedulerStats`."""
        return {
            "media_rows_used": self.rows_used,
            "media_rows_total": self.cache_rows,
            "media_queries": self.num_queries,
            "media_hits": self.num_hits,
            "media_rows_encoded": self.num_rows_encoded,
        }

    # ------------------------------------------------------------------------------------------------- as a `Limit`
    def room(self, candidate: Candidate, count: int) -> int:
        request = candidate.request
        return self.fit(request, self._start(candidate), count) if request.media else count

    def take(self, candidate: Candidate, count: int) -> None:
        if candidate.request.media:
            self.claim(candidate.request, self._start(candidate), count)

    def leave(self, request: Request, *, forget: bool) -> None:
        if request.request_id in self._held:
            for digest in list(self._held[request.request_id][1]):
                self._let_go(request.request_id, digest)

    def _start(self, candidate: Candidate) -> int:
        return self._kv.num_tokens_at_hand(candidate.request, candidate.computed)

    def _let_go(self, request_id: int, digest: bytes) -> None:
        _, ends = self._held[request_id]
        del ends[digest]
        if not ends:
            del self._held[request_id]
        holders = self._holders.get(digest)
        if holders is not None:
            holders.discard(request_id)
            if not holders:
                del self._holders[digest]
