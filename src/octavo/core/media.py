"""Which encoded rows of media the worker keeps, what a step encodes, and how far prompts can be computed with that.

An item is encoded in the step that computes its first token, unless its rows are kept from before: equal items are
encoded once. Rows that a request has begun to read are held until it has read all of them; the others stay as long as
nobody needs their room, the one read last the longest. A chunk of a prompt ends before an item for which a step has no
room. No deadlock: an item that is larger than the room is let in where nothing else is held, and who holds rows has
all that it needs to come to their end.

While requests decode, a step has time for a part of an item only, and the item is spread over several steps:

    step       | 1           | 2           | 3                     |
    encoded    | a a a       | a a a       | a a | b               |    in order: b begins when a has come to its end
    computed   | text before | -           | a's tokens, and on    |

One item at a time is under way. It is begun for a running request whose prompt it comes next in, which then holds its
room, or for a waiting one that begins with it, which holds nothing: it lets others pass until it is encoded, and has it
encoded again should someone need the room before it is let in. An item that nobody alive has asked for is given up.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.base.media import MediaItem
from octavo.core.blocks.kv_cache_manager import KVCacheManager
from octavo.core.limits import Candidate
from octavo.core.request import Request
from octavo.wire.step import MediaPart


@dataclass(frozen=True, slots=True)
class MediaCosts:
    """Sums and products: of a token of a prompt, of a unit of a medium's size, and of each other unit that this one
    sees. Zeros: a unit costs as much as a token."""

    token: int = 0
    unit: int = 0
    attention: int = 0

    def of_unit(self, item: MediaItem) -> float:
        """In tokens."""
        if not (self.token and self.unit):
            return 1.0
        return (self.unit + self.attention * item.size / max(1, item.num_sequences)) / self.token


@dataclass(slots=True)
class _UnderWay:
    """An item of which a part has been planned."""

    item: MediaItem
    askers: dict[int, Request]  # by id: who wants it
    end: int = 0  # so much of its size has been planned


class MediaLimit:
    """`fit` and `take` are also asked for the chunks of prompts that run already."""

    def __init__(
        self,
        kv: KVCacheManager,
        step_rows: int,
        cache_rows: int,
        *,
        is_chunked: bool,
        stays_whole: bool,
        costs: MediaCosts | None = None,
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
        self._costs = costs or MediaCosts()
        self._time: float | None = None  # of the step, in tokens; None: as much as it takes
        self._under_way: _UnderWay | None = None
        self._unread: set[bytes] = set()  # encoded for requests that have not claimed them yet
        self.encoded: dict[bytes, MediaPart] = {}  # in the step that is being planned
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
        under = self._under_way
        if under is not None and all(request.finished for request in under.askers.values()):
            self._drop(under.item.digest)

    def go_on(self, time: int | None) -> int:
        """Behind `begin_step`: the step may spend so much on encoding, counted in tokens; None: whatever it takes.
        Returns what the item under way takes of it."""
        self._time = None if time is None or not self._is_chunked else float(time)
        if self._under_way is None:
            return 0
        self._advance(self._under_way)
        return 0 if time is None or self._time is None else round(time - self._time)

    def take_plan(self) -> tuple[list[bytes], list[MediaPart]]:
        """What the worker is to drop and to encode."""
        dropped, encoded, self.dropped, self.encoded = self.dropped, list(self.encoded.values()), [], {}
        return dropped, encoded

    def fit(self, request: Request, start: int, count: int) -> int:
        """How many of the `count` tokens from `start` on can be computed in this step. Changes nothing."""
        if not self._is_chunked:
            return count
        end, left, time = start + count, self._left, 0.0
        room, is_alone = self._room()
        seen: set[bytes] = set()
        for item in request.media:
            is_kept = item.digest in self._holders and not self._is_under_way(item)
            if item.end <= start or is_kept or item.digest in seen:
                continue
            if item.offset >= end:
                break
            needed = 0 if item.digest in self._rows else item.rows
            has_left = needed <= left or (left == self._step_rows and needed > left)
            time += self._time_of(item)
            if not has_left or not self._has_time(time) or (item.rows > room and not is_alone):
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
            self._hold(request, item)
        for item in touched:
            if item.digest in self._rows:
                self._rows[item.digest] = self._rows.pop(item.digest)
            else:
                self._begin(item, request)

    def look_ahead(self, request: Request, start: int) -> None:
        """A running request has been given all tokens before `start`: what it reads next is encoded meanwhile."""
        item = self._next(request, start)
        if item is not None and self._ask(request, item) and self._is_under_way(item):
            self._hold(request, item)

    def holds_up(self, request: Request, start: int) -> bool:
        """Whether the next token of a waiting request is of an item for which this step has no time. It lets others
        pass then, and its turn comes when the item is encoded."""
        item = self._next(request, start)
        return item is not None and item.offset <= start and self._ask(request, item)

    def _next(self, request: Request, start: int) -> MediaItem | None:
        """The next item of its prompt, if that is not encoded."""
        item = next((item for item in request.media if item.end > start), None)
        return None if item is None or (item.digest in self._rows and not self._is_under_way(item)) else item

    def _ask(self, request: Request, item: MediaItem) -> bool:
        """Have an item encoded, in turn, that is not yet: whether it waits for time. If not, this step has time for all
        of it, or has no room for it."""
        if self._has_time(self._time_of(item)):
            return False
        if self._under_way is None:
            room, is_alone = self._room()
            if item.rows > room and not is_alone:
                return False
            if self._time:
                self._begin(item, request)
        elif self._is_under_way(item):
            self._under_way.askers[request.request_id] = request
        return True

    def _hold(self, request: Request, item: MediaItem) -> None:
        _, ends = self._held.setdefault(request.request_id, (request, {}))
        if item.digest not in ends:
            self.num_queries += 1
            self.num_hits += item.digest in self._rows and item.digest not in self._unread
        self._unread.discard(item.digest)
        ends[item.digest] = max(item.end, ends.get(item.digest, 0))
        self._holders.setdefault(item.digest, set()).add(request.request_id)

    def _begin(self, item: MediaItem, request: Request) -> None:
        used = self.rows_used
        for digest in list(self._rows):
            if used + item.rows <= self.cache_rows:
                break
            if digest not in self._holders and not self._is_digest_under_way(digest):
                used -= self._rows[digest]
                self._drop(digest)
        self._rows[item.digest] = item.rows
        self._left -= item.rows
        if item.digest not in self._holders:
            self._unread.add(item.digest)
        self.encoded[item.digest] = MediaPart(item.digest, item, 0)
        self._advance(_UnderWay(item, {request.request_id: request}))

    def _advance(self, under: _UnderWay) -> None:
        """Plan as much of an item as the step has time for, at least a bit."""
        item, digest = under.item, under.item.digest
        if not self._has_time(self._time_of(item, under.end)):
            assert self._time is not None
            under.end += max(1, int(self._time / self._costs.of_unit(item)))
            self._time = 0.0
        else:
            if self._time is not None:
                self._time -= self._time_of(item, under.end)
            under.end = item.size
        is_whole = under.end >= item.size
        before = self.encoded.get(digest)
        self.encoded[digest] = MediaPart(
            digest, None if before is None else before.item, None if is_whole else under.end
        )
        if not is_whole:
            self._under_way = under
            return
        self.num_rows_encoded += item.rows
        if self._is_under_way(item):
            self._under_way = None

    def _room(self) -> tuple[int, bool]:
        """Rows that are neither held nor under way, and whether these are all."""
        kept = set(self._holders)
        if self._under_way is not None:
            kept.add(self._under_way.item.digest)
        return self.cache_rows - sum(self._rows[digest] for digest in kept), not kept

    def _time_of(self, item: MediaItem, end: int | None = None) -> float:
        """In tokens, what is left of an item to be encoded, or of it behind `end`."""
        if end is None:
            if self._under_way is not None and self._is_under_way(item):
                end = self._under_way.end
            else:
                end = item.size if item.digest in self._rows else 0
        return (item.size - end) * self._costs.of_unit(item)

    def _has_time(self, time: float) -> bool:
        return self._time is None or time <= self._time

    def _is_under_way(self, item: MediaItem) -> bool:
        return self._is_digest_under_way(item.digest)

    def _is_digest_under_way(self, digest: bytes) -> bool:
        return self._under_way is not None and self._under_way.item.digest == digest

    def _drop(self, digest: bytes) -> None:
        """Nobody needs its rows, or what there is of them."""
        del self._rows[digest]
        self._unread.discard(digest)
        self.encoded.pop(digest, None)
        if self._is_digest_under_way(digest):
            self._under_way = None
        self.dropped.append(digest)

    def forget(self, encoded: list[MediaPart], dropped: list[bytes]) -> None:
        """A step did not happen that was to encode and to drop these; how far the worker has come is not known."""
        self.dropped = [*dropped, *self.dropped]
        for part in encoded:
            self._holders.pop(part.digest, None)
            if part.digest in self._rows:
                self._drop(part.digest)

    def clear(self) -> None:
        """The worker has forgotten all rows; nobody holds any."""
        self._rows, self._holders, self._held, self.dropped = {}, {}, {}, []
        self._under_way, self._unread, self.encoded = None, set(), {}

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
