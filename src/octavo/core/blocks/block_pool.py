"""The blocks of the KV cache: who holds them, which may be given out, and which are found again by their content.

    free, unnamed   a stack; given out first
    free, cached    in order of their release; the least recently used is given out (and forgotten) next
    referenced      ref_count > 0: held by that many block tables; cached or not

A block is cached once it is full and computed. It hangs on a node of the tree of all prefixes, which keeps its tokens
and what it follows, so that a hit is compared and not believed: with any hash function, however bad, a wrong block is
never returned. Groups of layers have blocks of their own at each node, and may lose them one by one: layers with a
window need those of a prefix's end alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from octavo.core.faults import fault

#: Block 0 belongs to nobody: padding of block tables points at it.
NULL_BLOCK_ID = 0


class PrefixNode:
    """What one block of tokens holds behind all those before it: its key, and the node of the block before or, for a
    chain's first, the cache salt. It is in the tree as long as it has a cached block or a later node has one."""

    __slots__ = ("block_hash", "blocks", "key", "num_children", "parent")

    def __init__(self, block_hash: bytes, key: bytes, parent: PrefixNode | str) -> None:
        self.block_hash = block_hash
        self.key = key
        self.parent = parent
        self.num_children = 0  # nodes of the tree that come next
        self.blocks: dict[int, KVCacheBlock] = {}  # group -> the cached block


class KVCacheBlock:
    """One block, of one group of layers while it is cached."""

    __slots__ = ("block_id", "group", "node", "ref_count")

    def __init__(self, block_id: int) -> None:
        self.block_id = block_id
        self.ref_count = 0
        self.node: PrefixNode | None = None  # None: not cached
        self.group = 0


class BlockPool:
    """`num_blocks` includes the null block. Not thread-safe: the scheduler's alone."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"A pool needs a block besides the null block, got {num_blocks}.")
        self.blocks = [KVCacheBlock(i) for i in range(num_blocks)]
        self.num_usable = num_blocks - 1
        self.num_cached = 0
        self._unnamed = list(range(num_blocks - 1, NULL_BLOCK_ID, -1))  # popped from the end: low ids first
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self._nodes: dict[bytes, PrefixNode] = {}

    @property
    def num_free(self) -> int:
        return len(self._unnamed) + len(self._evictable)

    def num_free_of(self, blocks: Iterable[KVCacheBlock]) -> int:
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

    def take(self, blocks: Iterable[KVCacheBlock]) -> None:
        """Add a reference to each of these cached blocks."""
        for block in blocks:
            if block.ref_count == 0:
                del self._evictable[block.block_id]
            block.ref_count += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """Drop one reference of each block of a table but the null block. Of a chain the tail is evicted before the
        head."""
        for block_id in reversed(block_ids):
            if block_id == NULL_BLOCK_ID:
                continue
            block = self.blocks[block_id]
            assert block.ref_count > 0, f"block {block_id} released twice"
            block.ref_count -= 1
            if block.ref_count == 0:
                if block.node is None:
                    self._unnamed.append(block_id)
                else:
                    self._evictable[block_id] = None

    def find(self, block_hash: bytes, key: bytes, parent: PrefixNode | str) -> PrefixNode | None:
        """The node of exactly this content after exactly this parent. Its groups may have blocks or not."""
        node = self._nodes.get(block_hash)
        if node is None or node.key != key or node.parent != parent:
            return None
        return node

    def cache(self, block_ids: Sequence[int], block_hash: bytes, key: bytes, parent: PrefixNode | str) -> PrefixNode:
        """Make referenced, computed blocks findable, the i-th as that of group i; returns their node.

        Where a group has another block of the same content already, this one stays unnamed: tables are append-only, so
        the duplicate is kept until its holder ends. When another content holds the same hash (a collision, or a chain
        that goes on from forgotten blocks) the newer one takes its place.
        """
        node = self._nodes.get(block_hash)
        if node is None or node.key != key or node.parent != parent:
            if not isinstance(parent, str):
                parent.num_children += 1
            if node is not None:
                self._forget_node(node)
            node = self._nodes[block_hash] = PrefixNode(block_hash, key, parent)
        for group, block_id in enumerate(block_ids):
            if block_id == NULL_BLOCK_ID or group in node.blocks:
                continue
            block = self.blocks[block_id]
            assert block.ref_count > 0 and block.node is None, f"block {block_id} cannot enter the cache"
            block.node, block.group = node, group
            node.blocks[group] = block
            self.num_cached += 1
        return node

    def uncache(self, block_id: int) -> None:
        """Never find this block again, nor what follows it. No-op for a block that is not cached."""
        node = self.blocks[block_id].node
        if node is not None:
            self._forget_node(node)

    def uncache_all(self) -> None:
        for node in list(self._nodes.values()):
            self._forget_node(node)

    def _forget_node(self, node: PrefixNode) -> None:
        """Its blocks, and the node: what hangs on it is not found any more."""
        for block in list(node.blocks.values()):
            self._forget(block)
            if block.ref_count == 0:
                del self._evictable[block.block_id]
                self._unnamed.append(block.block_id)
        self._remove(node)

    def _forget(self, block: KVCacheBlock) -> None:
        """One block. Its node stays as long as it has others, or later nodes have."""
        node = block.node
        assert node is not None
        del node.blocks[block.group]
        block.node = None
        self.num_cached -= 1
        if not node.blocks and not node.num_children:
            self._remove(node)

    def _remove(self, node: PrefixNode) -> None:
        """Take a node out of the tree, with those before it that were there for its sake alone. No-op for one that is
        not in the tree."""
        while self._nodes.get(node.block_hash) is node:
            del self._nodes[node.block_hash]
            parent = node.parent
            if isinstance(parent, str):
                return
            parent.num_children -= 1
            if parent.blocks or parent.num_children:
                return
            node = parent
