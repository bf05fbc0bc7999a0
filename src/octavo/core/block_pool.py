"""The blocks of the KV cache: who holds them, which may be given out, and which are found again by their content.

    free, unnamed   a stack; given out first
    free, cached    in order of their release; the least recently used is given out (and forgotten) next
    referenced      ref_count > 0: held by that many block tables; cached or not

A block is cached once it is full and computed. It keeps its tokens and what it hangs on, so that a hit is compared
and not believed: with any hash function, however bad, a wrong block is never returned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from octavo.core.faults import fault

#: Block 0 belongs to nobody: padding of block tables points at it.
NULL_BLOCK_ID = 0


class KVCacheBlock:
    """One block. `uid` is new for every content it is cached with; `parent` is the uid of the block before it in the
    chain, or the cache salt for a chain's first block."""

    __slots__ = ("block_hash", "block_id", "parent", "ref_count", "tokens", "uid")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.block_hash: bytes | None = None  # None: not cached
        self.tokens = b""
        self.parent: int | str = ""
        self.uid = 0


class BlockPool:
    """`num_blocks` includes the null block. Not thread-safe: the scheduler's alone."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"A pool needs a block besides the null block, got {num_blocks}.")
        self.blocks = [KVCacheBlock(i) for i in range(num_blocks)]
        self.num_usable = num_blocks - 1
        self._unnamed = list(range(num_blocks - 1, NULL_BLOCK_ID, -1))  # popped from the end: low ids first
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._cached: dict[bytes, KVCacheBlock] = {}
        self._last_uid = 0

    @property
    def num_free(self) -> int:
        return len(self._unnamed) + len(self._evictable)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    def num_free_of(self, blocks: Sequence[KVCacheBlock]) -> int:
        """How many of these cached blocks are free: taking them leaves so many fewer to give out."""
        return sum(1 for block in blocks if block.ref_count == 0)

    def allocate(self, count: int) -> list[int]:
        """Give out `count` blocks with one reference each. The caller has made sure that so many are free."""
        fault("allocate")
        unnamed, ids = self._unnamed, []
        for _ in range(count):
            if unnamed:
                block_id = unnamed.pop()
            else:
                block_id, _none = self._evictable.popitem(last=False)
                self._forget(self.blocks[block_id])
            self.blocks[block_id].ref_count = 1
            ids.append(block_id)
        return ids

    def take(self, blocks: Sequence[KVCacheBlock]) -> None:
        """Add a reference to each of these cached blocks."""
        for block in blocks:
            if block.ref_count == 0:
                del self._evictable[block.block_id]
            block.ref_count += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop one reference of each block of a table. Of a chain the tail is evicted before the head."""
        for block_id in reversed(block_ids):
            block = self.blocks[block_id]
            assert block.ref_count > 0, f"block {block_id} released twice"
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.block_hash is None:
                    self._unnamed.append(block_id)
                else:
                    self._evictable[block_id] = None

    def lookup(self, block_hash: bytes, tokens: bytes, parent: int | str) -> KVCacheBlock | None:
        """The cached block of exactly this content after exactly this parent."""
        block = self._cached.get(block_hash)
        if block is None or block.tokens != tokens or block.parent != parent:
            return None
        return block

    def cache(self, block_id: int, block_hash: bytes, tokens: bytes, parent: int | str) -> int:
        """Make a referenced, computed block findable; returns the uid that its successor hangs on.

        When another block holds the same content already, that one's uid is returned and this one stays unnamed:
        tables are append-only, so the duplicate is kept until its holder ends. When another content holds the same
        hash (a collision, or a chain whose head was evicted and computed anew) the newer one takes its place.
        """
        other = self._cached.get(block_hash)
        if other is not None:
            if other.tokens == tokens and other.parent == parent:
                return other.uid
            self.uncache(other.block_id)
        block = self.blocks[block_id]
        assert block.ref_count > 0 and block.block_hash is None, f"block {block_id} cannot enter the cache"
        self._last_uid += 1
        block.block_hash, block.tokens, block.parent, block.uid = block_hash, tokens, parent, self._last_uid
        self._cached[block_hash] = block
        return block.uid

    def uncache(self, block_id: int) -> None:
        """Never find this block again. No-op for a block that is not cached."""
        block = self.blocks[block_id]
        if block.block_hash is None:
            return
        self._forget(block)
        if block.ref_count == 0:
            del self._evictable[block_id]
            self._unnamed.append(block_id)

    def uncache_all(self) -> None:
        for block in list(self._cached.values()):
            self.uncache(block.block_id)

    def _forget(self, block: KVCacheBlock) -> None:
        assert block.block_hash is not None
        del self._cached[block.block_hash]
        block.block_hash, block.tokens, block.parent, block.uid = None, b"", "", 0
