"""Block tables of requests over the block pool, and the prefix cache.

A full block's hash is SHA-256 over its parent's hash and its key: its token ids (4 bytes each, little-endian) and,
where there are any, the adapter of its request and the media that it holds tokens of. The first block's parent is the
hash of the cache salt. Requests whose salts or adapters differ share nothing; those whose media differ, what is before.

Each group of layers (`cache.spec`) has a block table of its own. That of a group with a window begins with null blocks,
up to the first block that the next token sees: what lies before is given back, and can still be found in the cache.

Layers that see an encoder's rows have tables of their own, as long as its input: a request holds their blocks from its
admission to its end, and shares none.

    tokens                | computed ........................ | planned next | known, not yet planned .. |
    table, all keys       | # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # # |
    table, with a window  | 0 0 0 0 0 0 0 0 0 0 # # # # # # # # # # # # # # |
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence

from octavo.cache.spec import capacity_tokens, first_needed_block, max_group_blocks
from octavo.core.blocks.block_pool import NULL_BLOCK_ID, BlockPool, KVCacheBlock, PrefixNode
from octavo.core.request import Request

_TOKEN_BYTES = 4
_NEVER = 1 << 62


def hash_salt(salt: str) -> bytes:
    """The parent of a chain's first block."""
    return hashlib.sha256(b"octavo kv " + salt.encode("utf-8", "surrogatepass")).digest()


def hash_block(parent: bytes, key: bytes) -> bytes:
    return hashlib.sha256(parent + key).digest()


class KVCacheManager:
    """`num_blocks` includes the null block 0. Owns every `Request.block_tables` and the fields beside it.

    `windows`: of each group of layers, 0 for one that keeps all keys. `step_tokens`: the most tokens of one prompt that
    a step computes. What was found of a request's tokens in the cache goes around as `hit`, the nodes of its blocks.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        num_swap_blocks: int = 0,
        caches_output: bool = True,
        *,
        windows: Sequence[int] = (0,),
        step_tokens: int = 1,
        num_encoder_groups: int = 0,
        max_encoder_len: int = 0,
        media_stays_whole: bool = False,
    ) -> None:
        """`media_stays_whole`: a hit never ends within a span of media."""
        self.caches_output = caches_output  # or only the blocks of prompts
        self.num_swap_blocks = self.num_free_swap_blocks = num_swap_blocks  # of the host's memory
        self.num_swapped = 0  # requests whose blocks the host keeps
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.windows = tuple(windows)
        self._has_windows = any(windows)
        self._num_encoder_groups = num_encoder_groups
        self._max_encoder_len = max_encoder_len
        self.step_tokens = step_tokens
        self._media_stays_whole = media_stays_whole
        self.pool = BlockPool(num_blocks)
        # Admissions leave this many blocks to those who run already, so that a newcomer is not thrown out at once.
        self.watermark = max(1, self.pool.num_usable // 100)

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence that fits when nothing else is held."""
        num_usable = self.pool.num_usable - self._num_encoder_groups * self.num_blocks_of(self._max_encoder_len)
        return capacity_tokens(self.windows, num_usable, self.block_size, self.step_tokens)

    @property
    def num_blocks_used(self) -> int:
        return self.pool.num_usable - self.pool.num_free

    # ------------------------------------------------------------------------------------------------ prefix cache
    def get_computed_blocks(self, request: Request) -> list[PrefixNode]:
        """What the cache has of the request's first tokens: at most `request.num_reusable_tokens` of them.

        The blocks are not taken: call `admit` with them before anything else is allocated.
        """
        if not self.enable_prefix_caching:
            return []
        self._extend_keys(request)
        find, hashes, keys = self.pool.find, request.block_hashes, request.block_tokens
        parent: PrefixNode | str = request.cache_salt
        nodes: list[PrefixNode] = []
        for i in range(self.num_shareable_blocks(request)):
            node = find(hashes[i], keys[i], parent)
            if node is None or (not self.windows[0] and 0 not in node.blocks):
                break
            nodes.append(node)
            parent = node
        del nodes[self._num_usable(nodes) :]
        while self._media_stays_whole and (count := self._before_media(request, len(nodes))) < len(nodes):
            del nodes[count:]
            del nodes[self._num_usable(nodes) :]
        return nodes

    def _before_media(self, request: Request, count: int) -> int:
        """As many of `count` blocks as do not end within a span."""
        end = count * self.block_size
        for item in request.media:
            for first, length in item.spans:
                if first < end < first + length:
                    return first // self.block_size
        return count

    def _num_usable(self, nodes: list[PrefixNode]) -> int:
        """The longest beginning of a chain behind which every group has the blocks that the next token sees. A first
        group that keeps all keys has been looked at on the way."""
        others = list(enumerate(self.windows))[0 if self.windows[0] else 1 :]
        count, before = len(nodes), -1
        while count != before:
            before = count
            for group, window in others:
                count = self._num_usable_of(nodes, group, window, count)
        return count

    def _num_usable_of(self, nodes: list[PrefixNode], group: int, window: int, count: int) -> int:
        """The same for one group, of the first `count` nodes."""
        first = self._first_needed(window, count * self.block_size)
        for i in range(count - 1, -1, -1):  # blocks i + 1 .. count - 1 are there
            if i < first:
                break
            if group not in nodes[i].blocks:
                count, first = i, self._first_needed(window, i * self.block_size)
        return count

    def num_shareable_blocks(self, request: Request) -> int:
        return request.num_reusable_tokens // self.block_size

    def _first_needed(self, window: int, num_computed_tokens: int) -> int:
        return first_needed_block(window, num_computed_tokens, self.block_size)

    # ---------------------------------------------------------------------------------------------------- admission
    def admit(self, request: Request, hit: list[PrefixNode], *, keep_free: int) -> bool:
        """Give a request that holds nothing the blocks of its tokens, those of `hit` first, or change nothing.

        Groups that keep all keys get all blocks at once, though the tokens may be computed over many steps: a prompt
        that has started is never short of them, so two half-computed prompts cannot wait for each other. A group with
        a window gets those of its first step; from there on it gives back about what it takes. `keep_free` blocks must
        stay free, and if there are any, beside them what the window will come to hold.
        """
        if not self.fits(request, hit, keep_free=keep_free):
            return False
        num_computed = self.num_tokens_at_hand(request, hit)
        self.pool.take(self._blocks_to_take(hit, num_computed))
        spans = list(self._spans(request, num_computed))
        request.block_tables = tables = [  # before the blocks that are new, which may raise
            [NULL_BLOCK_ID] * first + [node.blocks[group].block_id for node in hit[first:]]
            for group, (first, _) in enumerate(spans)
        ]
        self._extend(tables, [end - len(table) for table, (_, end) in zip(tables, spans, strict=True)])
        request.num_allocated_tokens = self._num_allocated(tables)
        num_encoder_blocks = self.num_blocks_of(request.num_encoder_rows)
        request.encoder_block_tables = [self.pool.allocate(num_encoder_blocks) for _ in range(self._num_encoder_groups)]
        request.num_computed_tokens = num_computed
        request.num_cached_blocks = len(hit)
        request.cache_parent = hit[-1] if hit else request.cache_salt
        request.next_cache_tokens = self._next_cache_tokens(request)
        request.next_settle_tokens = self._next_settle_tokens(request)
        return True

    def fits(self, request: Request, hit: list[PrefixNode], *, keep_free: int) -> bool:
        """Whether `admit` would succeed."""
        num_computed = self.num_tokens_at_hand(request, hit)
        num_taken = self.pool.num_free_of(self._blocks_to_take(hit, num_computed))
        num_taken += self._num_encoder_groups * self.num_blocks_of(request.num_encoder_rows)
        num_all = self.num_blocks_of(len(request.token_ids))
        for window, (first, end) in zip(self.windows, self._spans(request, num_computed), strict=True):
            num_taken += end - max(first, len(hit))
            if keep_free:
                held = end - first
                num_taken += max(0, max_group_blocks(window, num_all, self.block_size, self.step_tokens) - held)
        return num_taken + keep_free <= self.pool.num_free

    def _spans(self, request: Request, num_computed: int) -> Iterator[tuple[int, int]]:
        """Of each group, the first block and the end of those that an admitted request holds at once."""
        num_all = self.num_blocks_of(len(request.token_ids))
        num_next = self.num_blocks_of(min(len(request.token_ids), num_computed + self.step_tokens))
        for window in self.windows:
            yield self._first_needed(window, num_computed), num_next if window else num_all

    def _blocks_to_take(self, hit: list[PrefixNode], num_computed: int) -> Iterator[KVCacheBlock]:
        for group, window in enumerate(self.windows):
            for node in hit[self._first_needed(window, num_computed) :]:
                yield node.blocks[group]

    def _next_settle_tokens(self, request: Request) -> int:
        """At how many computed tokens `settle` has something to do."""
        if not self._has_windows:
            return request.next_cache_tokens
        return min(request.next_cache_tokens, self._next_release_tokens(request.num_computed_tokens))

    def _next_cache_tokens(self, request: Request) -> int:
        """At how many computed tokens the next block can enter the cache."""
        num_tokens = (request.num_cached_blocks + 1) * self.block_size
        is_cached = self.enable_prefix_caching and (self.caches_output or num_tokens <= request.num_prompt_tokens)
        return num_tokens if is_cached else _NEVER

    def _next_release_tokens(self, num_computed: int) -> int:
        """At how many computed tokens a group with a window has a block to give back."""
        size = self.block_size
        return min(
            (self._first_needed(window, num_computed) + 1) * size + window - 1 for window in self.windows if window
        )

    def num_tokens_at_hand(self, request: Request, hit: list[PrefixNode]) -> int:
        """How many tokens need not be computed: found in the cache, or kept by the host."""
        return max(len(hit) * self.block_size, request.num_swapped_tokens)

    def num_blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # ----------------------------------------------------------------------------------------------------- swapping
    def swap_out(self, request: Request) -> list[int]:
        """The blocks of a running request that the host is to keep, before they are freed; none: it has no room, or the
        request no blocks."""
        last = self.num_blocks_of(request.num_computed_tokens)
        block_ids = [
            block_id
            for table, window in zip(request.block_tables, self.windows, strict=True)
            for block_id in table[self._first_needed(window, request.num_computed_tokens) : last]
        ]
        if not block_ids or len(block_ids) > self.num_free_swap_blocks:
            return []
        self.num_free_swap_blocks -= len(block_ids)
        self.num_swapped += 1
        request.num_swapped_tokens, request.num_swapped_blocks = request.num_computed_tokens, len(block_ids)
        return block_ids

    def swap_in(self, request: Request, hit: list[PrefixNode]) -> tuple[list[int], list[int]]:
        """Of what `swap_out` named: the places that an admitted request lacks behind its `hit`, and its blocks for
        them."""
        num_tokens = request.num_swapped_tokens
        last = self.num_blocks_of(num_tokens)
        places: list[int] = []
        block_ids: list[int] = []
        num_before = 0
        for table, window in zip(request.block_tables, self.windows, strict=True):
            first = self._first_needed(window, num_tokens)
            missing = range(max(first, len(hit)), last)
            places += [num_before + i - first for i in missing]
            block_ids += table[missing.start : last]
            num_before += last - first
        return places, block_ids

    def drop_swapped(self, request: Request) -> None:
        """The host need not keep the request's blocks any longer."""
        self.num_free_swap_blocks += request.num_swapped_blocks
        self.num_swapped -= 1
        request.num_swapped_tokens = request.num_swapped_blocks = 0

    # ------------------------------------------------------------------------------------------- from step to step
    def num_next_tokens(self, num_computed: int, num_tokens: int) -> int:
        """For how many of a request's `num_tokens` tokens it must have blocks in the step that goes on from
        `num_computed`."""
        return min(num_tokens, num_computed + self.step_tokens) if self._has_windows else num_tokens

    def num_missing_blocks(self, request: Request, num_tokens: int) -> int:
        """How many blocks `grow` would take."""
        if num_tokens <= request.num_allocated_tokens:
            return 0
        return sum(self._num_missing(request, num_tokens))

    def _num_missing(self, request: Request, num_tokens: int) -> list[int]:
        """The same, group by group."""
        num_blocks = self.num_blocks_of(num_tokens)
        return [max(0, num_blocks - len(table)) for table in request.block_tables]

    def grow(self, request: Request, num_tokens: int) -> list[list[int]] | None:
        """The blocks that a request lacks for `num_tokens` tokens, group by group. None, and no change: too few are
        free."""
        counts = self._num_missing(request, num_tokens)
        if sum(counts) > self.pool.num_free:
            return None
        new_ids = self._extend(request.block_tables, counts)
        request.num_allocated_tokens = self._num_allocated(request.block_tables)
        return new_ids

    def _num_allocated(self, tables: list[list[int]]) -> int:
        """Tokens for which a request has blocks: any number, where no layer keeps keys."""
        return min(map(len, tables)) * self.block_size if tables else _NEVER

    def _extend(self, tables: list[list[int]], counts: list[int]) -> list[list[int]]:
        """Append so many new blocks to each table; returns them."""
        block_ids = self.pool.allocate(sum(counts))
        if len(tables) == 1:
            tables[0] += block_ids
            return [block_ids]
        new_ids = []
        for table, count in zip(tables, counts, strict=True):
            new_ids.append(block_ids[:count])
            table += new_ids[-1]
            del block_ids[:count]
        return new_ids

    def settle(self, request: Request) -> None:
        """Called after the step that computed `num_computed_tokens`, when they are `next_settle_tokens` or more: full
        blocks can be found by others, and those that no later token sees are given back."""
        if request.num_computed_tokens >= request.next_cache_tokens:
            self._cache_computed_blocks(request)
        if self._has_windows:
            self._release_unseen(request)
        request.next_settle_tokens = self._next_settle_tokens(request)

    def _release_unseen(self, request: Request) -> None:
        for table, window in zip(request.block_tables, self.windows, strict=True):
            end = self._first_needed(window, request.num_computed_tokens)
            first = end
            while first and table[first - 1] != NULL_BLOCK_ID:
                first -= 1
            self.pool.release(table[first:end])
            table[first:end] = [NULL_BLOCK_ID] * (end - first)

    def _cache_computed_blocks(self, request: Request) -> None:
        self._extend_keys(request)
        num_tokens = request.num_computed_tokens
        if not self.caches_output:
            num_tokens = min(num_tokens, request.num_prompt_tokens)
        first, last = request.num_cached_blocks, num_tokens // self.block_size
        parent, cache = request.cache_parent, self.pool.cache
        columns = zip(*(table[first:last] for table in request.block_tables), strict=True)
        for i, block_ids in enumerate(columns, first):
            parent = cache(block_ids, request.block_hashes[i], request.block_tokens[i], parent)
        request.cache_parent = parent
        request.num_cached_blocks = last
        request.next_cache_tokens = self._next_cache_tokens(request)

    def free(self, request: Request, *, forget: bool = False) -> None:
        """Give back all blocks. `forget`: their content is in doubt, they leave the cache, also for other holders."""
        for table in request.block_tables:
            if forget:
                for block_id in table:
                    self.pool.uncache(block_id)
            self.pool.release(table)
        for table in request.encoder_block_tables:
            self.pool.release(table)
        request.block_tables, request.encoder_block_tables = [], []
        request.num_allocated_tokens = request.num_computed_tokens = request.num_cached_blocks = 0
        request.cache_parent = request.cache_salt

    def reset_prefix_cache(self) -> None:
        """Forget every cached block. Running requests keep theirs, and no chain goes on from a forgotten block."""
        self.pool.uncache_all()

    def _extend_keys(self, request: Request) -> None:
        """Compute the hashes of the full blocks that have none yet."""
        block_size, hashes = self.block_size, request.block_hashes
        first, last = len(hashes), len(request.token_ids) // block_size
        if first == last:
            return
        tokens = request.token_ids[first * block_size : last * block_size]
        data = struct.pack(f"<{len(tokens)}I", *tokens)
        parent = hashes[-1] if hashes else hash_salt(request.cache_salt)
        stride = block_size * _TOKEN_BYTES
        for start in range(0, len(data), stride):
            key = data[start : start + stride]
            if request.has_extra_keys:
                first_token = (first + start // stride) * block_size
                key += request.extra_key(first_token, first_token + block_size)
            parent = hash_block(parent, key)
            hashes.append(parent)
            request.block_tokens.append(key)
