"""Block tables of requests over the block pool, and the prefix cache.

A full block's hash is SHA-256 over its parent's hash and its key: its token ids (4 bytes each, little-endian) and,
where there are any, the adapter of its request and the media that it holds tokens of. The first block's parent is the
hash of the cache salt. Requests whose salts or adapters differ share nothing; those whose media differ, what is before.
"""

from __future__ import annotations

import hashlib
import struct

from octavo.core.block_pool import BlockPool, KVCacheBlock
from octavo.core.request import Request

_TOKEN_BYTES = 4
_NEVER = 1 << 62


def hash_salt(salt: str) -> bytes:
    """The parent of a chain's first block."""
    return hashlib.sha256(b"octavo kv " + salt.encode("utf-8", "surrogatepass")).digest()


def hash_block(parent: bytes, key: bytes) -> bytes:
    return hashlib.sha256(parent + key).digest()


class KVCacheManager:
    """`num_blocks` includes the null block 0. Owns every `Request.block_ids` and the fields beside it."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        enable_prefix_caching: bool = True,
        num_swap_blocks: int = 0,
        caches_output: bool = True,
    ) -> None:
        self.caches_output = caches_output  # or only the blocks of prompts
        self.num_swap_blocks = self.num_free_swap_blocks = num_swap_blocks  # of the host's memory
        self.num_swapped = 0  # requests whose blocks the host keeps
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        # Admissions leave this many blocks to those who run already, so that a newcomer is not thrown out at once.
        self.watermark = max(1, self.pool.num_usable // 100)

    @property
    def capacity_tokens(self) -> int:
        """The longest sequence that fits when nothing else is held."""
        return self.pool.num_usable * self.block_size

    @property
    def num_blocks_used(self) -> int:
        return self.pool.num_usable - self.pool.num_free

    def get_computed_blocks(self, request: Request) -> list[KVCacheBlock]:
        """The cached blocks that the request's tokens begin with: at most `request.num_reusable_tokens` tokens.

        The blocks are not taken: call `admit` with them before anything else is allocated.
        """
        if not self.enable_prefix_caching:
            return []
        self._extend_keys(request)
        lookup, hashes, tokens = self.pool.lookup, request.block_hashes, request.block_tokens
        parent: int | str = request.cache_salt
        found: list[KVCacheBlock] = []
        for i in range(self.num_shareable_blocks(request)):
            block = lookup(hashes[i], tokens[i], parent)
            if block is None:
                break
            found.append(block)
            parent = block.uid
        return found

    def num_shareable_blocks(self, request: Request) -> int:
        return request.num_reusable_tokens // self.block_size

    def admit(self, request: Request, computed: list[KVCacheBlock], *, keep_free: int) -> bool:
        """Give a request that holds nothing all blocks of its tokens, `computed` first, or change nothing.

        All at once, though its tokens may be computed over many steps: a prompt that has started is never short of
        blocks, so two half-computed prompts cannot wait for each other. `keep_free` blocks must stay free.
        """
        if not self.fits(request, computed, keep_free=keep_free):
            return False
        pool, block_size = self.pool, self.block_size
        num_new = self._num_missing_blocks(request, computed)
        pool.take(computed)
        block_ids = [block.block_id for block in computed]
        request.block_ids = block_ids  # before the next line, which may raise: what is held stands in the table
        block_ids += pool.allocate(num_new)
        request.num_allocated_tokens = len(block_ids) * block_size
        request.num_computed_tokens = self.num_tokens_at_hand(request, computed)
        request.num_cached_blocks = len(computed)
        request.cache_parent = computed[-1].uid if computed else request.cache_salt
        request.next_cache_tokens = self._next_cache_tokens(request, len(computed))
        return True

    def fits(self, request: Request, computed: list[KVCacheBlock], *, keep_free: int) -> bool:
        """Whether `admit` would succeed."""
        num_taken = self._num_missing_blocks(request, computed) + self.pool.num_free_of(computed)
        return num_taken + keep_free <= self.pool.num_free

    def _num_missing_blocks(self, request: Request, computed: list[KVCacheBlock]) -> int:
        return self.num_blocks_of(len(request.token_ids)) - len(computed)

    def _next_cache_tokens(self, request: Request, num_cached_blocks: int) -> int:
        """At how many computed tokens the next block can enter the cache."""
        num_tokens = (num_cached_blocks + 1) * self.block_size
        is_cached = self.enable_prefix_caching and (self.caches_output or num_tokens <= request.num_prompt_tokens)
        return num_tokens if is_cached else _NEVER

    def num_tokens_at_hand(self, request: Request, computed: list[KVCacheBlock]) -> int:
        """How many tokens need not be computed: found in the cache, or kept by the host."""
        return max(len(computed) * self.block_size, request.num_swapped_tokens)

    def swap_out(self, request: Request) -> list[int]:
        """The blocks of a running request that the host is to keep, before they are freed; none: it has no room."""
        num_blocks = self.num_blocks_of(request.num_computed_tokens)
        if num_blocks > self.num_free_swap_blocks:
            return []
        self.num_free_swap_blocks -= num_blocks
        self.num_swapped += 1
        request.num_swapped_tokens = request.num_computed_tokens
        return request.block_ids[:num_blocks]

    def drop_swapped(self, request: Request) -> None:
        """The host need not keep the request's blocks any longer."""
        self.num_free_swap_blocks += self.num_blocks_of(request.num_swapped_tokens)
        self.num_swapped -= 1
        request.num_swapped_tokens = 0

    def num_blocks_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def grow(self, request: Request, num_tokens: int) -> list[int] | None:
        """The blocks that a request lacks for `num_tokens` tokens. None, and no change: too few are free."""
        num_new = -(-(num_tokens - request.num_allocated_tokens) // self.block_size)
        if num_new > self.pool.num_free:
            return None
        new_ids = self.pool.allocate(num_new)
        request.block_ids += new_ids
        request.num_allocated_tokens += num_new * self.block_size
        return new_ids

    def cache_computed_blocks(self, request: Request) -> None:
        """Make the full blocks among the computed tokens findable. Called after the step that computed them."""
        self._extend_keys(request)
        num_tokens = request.num_computed_tokens
        if not self.caches_output:
            num_tokens = min(num_tokens, request.num_prompt_tokens)
        first, last = request.num_cached_blocks, num_tokens // self.block_size
        parent = request.cache_parent
        for i in range(first, last):
            parent = self.pool.cache(request.block_ids[i], request.block_hashes[i], request.block_tokens[i], parent)
        request.cache_parent = parent
        request.num_cached_blocks = last
        request.next_cache_tokens = self._next_cache_tokens(request, last)

    def free(self, request: Request, *, forget: bool = False) -> None:
        """Give back all blocks. `forget`: their content is in doubt, they leave the cache, also for other holders."""
        if forget:
            for block_id in request.block_ids:
                self.pool.uncache(block_id)
        self.pool.release(request.block_ids)
        request.block_ids = []
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
