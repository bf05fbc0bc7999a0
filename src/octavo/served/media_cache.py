"""Prepared media that requests may send again, the newest as far as they fit."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from octavo.served.media import Pieces

#: Names that callers gave.
_MAX_NAMES: Final = 8192

Name = tuple[str, str, str]


class MediaCache:
    """By the digest of what was sent. A caller's own name (salt, kind, uuid) leads to a digest and is never trusted for
    content: whoever sends content gets what that content is."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._kept: OrderedDict[bytes, tuple[Pieces, int]] = OrderedDict()
        self._names: OrderedDict[Name, bytes] = OrderedDict()
        self._turns: dict[
            bytes, tuple[asyncio.Lock, int]
        ] = {}  # of digests that are being prepared, and how many want it

    @asynccontextmanager
    async def turn(self, digest: bytes) -> AsyncIterator[None]:
        """One at a time for each digest."""
        lock, num_users = self._turns.get(digest) or (asyncio.Lock(), 0)
        self._turns[digest] = (lock, num_users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, num_users = self._turns.pop(digest)
            if num_users > 1:
                self._turns[digest] = (lock, num_users - 1)

    @property
    def num_bytes(self) -> int:
        return self._num_bytes

    def get(self, digest: bytes) -> Pieces | None:
        entry = self._kept.get(digest)
        if entry is None:
            return None
        self._kept.move_to_end(digest)
        return entry[0]

    def put(self, digest: bytes, pieces: Pieces) -> None:
        size = sum(map(_size, pieces))
        if size > self._max_bytes or digest in self._kept:
            return
        self._kept[digest] = (pieces, size)
        self._num_bytes += size
        while self._num_bytes > self._max_bytes:
            _, (_, freed) = self._kept.popitem(last=False)
            self._num_bytes -= freed

    def name(self, name: Name, digest: bytes) -> None:
        self._names[name] = digest
        self._names.move_to_end(name)
        if len(self._names) > _MAX_NAMES:
            self._names.popitem(last=False)

    def named(self, name: Name) -> Pieces | None:
        digest = self._names.get(name)
        return None if digest is None else self.get(digest)


def _size(piece: object) -> int:
    if isinstance(piece, str):
        return len(piece)
    prepared = piece.prepared  # type: ignore[attr-defined]
    return len(prepared.text) + sum(len(tensor.data) for tensor in prepared.tensors.values())
