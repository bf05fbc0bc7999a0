"""What is kept of responses and conversations: an SQLite file, or memory. Bounded in size and age.

Each row belongs to the key that it was made with; for another key it does not exist. All of SQLite runs in one
thread, in the order in which it was asked, so that a slow disk stops no stream.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from octavo.base.config import ServerConfig
from octavo.base.errors import InvalidConfig, ServerError
from octavo.server.responses.protocol.items import Item

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger(__name__)

UNFINISHED = ("queued", "in_progress")
#: What a later request can go on from.
ANSWERED = ("completed", "incomplete")
#: What a server says of the responses that its predecessor did not finish.
LOST = {"code": "server_error", "message": "The server ended while the response was being made."}
#: Seconds between two looks for what is too old.
_SWEEP_SECONDS = 60.0
_VERSION = 1

_SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, used REAL NOT NULL, status TEXT NOT NULL, previous TEXT,
    body BLOB NOT NULL, input BLOB NOT NULL, events BLOB, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX responses_used ON responses (used);
CREATE TABLE conversations (
    id TEXT PRIMARY KEY, owner TEXT NOT NULL, used REAL NOT NULL, body BLOB NOT NULL, size INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX conversations_used ON conversations (used);
CREATE TABLE items (
    position INTEGER PRIMARY KEY AUTOINCREMENT, parent TEXT NOT NULL, id TEXT NOT NULL, data BLOB NOT NULL
);
CREATE INDEX items_parent ON items (parent, position);
CREATE INDEX items_id ON items (id);
"""

#: Ids are the callers' own: many items may have one.
_ITEM = "SELECT parent, data FROM items WHERE id=? ORDER BY position DESC LIMIT 64"

T = TypeVar("T")


class StoreFailed(ServerError):
    """The disk is full, or the file was damaged."""


@dataclass(frozen=True)
class KeptResponse:
    """`body` and `input` are JSON: the response, and the list of the items that its request brought."""

    id: str
    owner: str
    status: str
    previous: str | None
    body: bytes
    input: bytes
    events: bytes | None = None  # of one made in the background that is at its end: all of them

    @cached_property
    def _response(self) -> dict[str, Any]:
        response: dict[str, Any] = msgspec.json.decode(self.body)
        return response

    @property
    def is_background(self) -> bool:
        return bool(self._response["background"])

    @property
    def conversation(self) -> str | None:
        named = self._response["conversation"]
        return None if named is None else str(named["id"])

    @property
    def output(self) -> list[Item]:
        items: list[Item] = self._response["output"]
        return items

    @property
    def input_items(self) -> list[Item]:
        items: list[Item] = msgspec.json.decode(self.input)
        return items


class ResponseStore:
    """Opened by its first use. Methods raise `StoreFailed`; what is not there is None."""

    def __init__(self, config: ServerConfig) -> None:
        self._path = config.responses_store
        self._max_bytes = config.responses_store_bytes
        self._max_age = config.responses_store_age
        self._thread = ThreadPoolExecutor(1, "responses")
        self._made: sqlite3.Connection | None = None
        self._num_bytes: int | None = None  # to be counted
        self._swept = 0.0

    # ------------------------------------------------------------ its thread
    def _submit(self, function: Callable[[sqlite3.Connection], T]) -> Future[T]:
        def work() -> T:
            import sqlite3

            try:
                connection = self._connection()
                with connection:  # one transaction
                    return function(connection)
            except (sqlite3.Error, OSError) as exc:
                if self._made is not None:  # else it is told at start
                    logger.error("the store of responses: %s", exc)
                self._num_bytes = None  # what was counted may not have happened
                raise StoreFailed("The server's store of responses does not work.") from exc

        try:
            return self._thread.submit(work)
        except RuntimeError:  # it was closed
            raise StoreFailed("The server is shutting down.") from None

    async def _do(self, function: Callable[[sqlite3.Connection], T]) -> T:
        # What was asked is done, also when nobody waits for it any more.
        return await asyncio.shield(asyncio.wrap_future(self._submit(function)))

    def _connection(self) -> sqlite3.Connection:
        if self._made is None:
            self._made = _opened(self._path)
            _finish_lost(self._made)
        if self._num_bytes is None:
            sizes = "SELECT total(size) FROM (SELECT size FROM responses UNION ALL SELECT size FROM conversations)"
            self._num_bytes = int(self._made.execute(sizes).fetchone()[0])
        return self._made

    async def open(self) -> None:
        """Raises `InvalidConfig` when the file cannot be used."""
        try:
            await self._do(lambda connection: None)
        except StoreFailed as exc:
            cause = exc.__cause__
            reason = (cause.strerror if isinstance(cause, OSError) else None) or cause
            raise InvalidConfig(f"--responses-store {self._path} cannot be used: {reason}") from exc

    async def close(self) -> None:
        """Behind all that was asked before."""

        def work() -> None:
            if self._made is not None:
                self._made.close()

        closed = self._thread.submit(work)
        self._thread.shutdown(wait=False)
        await asyncio.wrap_future(closed)

    # ------------------------------------------------------------ responses
    async def insert(self, kept: KeptResponse, items: Sequence[Item]) -> None:
        """`items`: those of `kept.input`."""

        def work(connection: sqlite3.Connection) -> None:
            size = len(kept.body) + len(kept.input)
            row = (kept.id, kept.owner, time.time(), kept.status, kept.previous, kept.body, kept.input, None, size)
            connection.execute("INSERT INTO responses VALUES (?,?,?,?,?,?,?,?,?)", row)
            self._add_ids(connection, kept.id, items)
            self._grow(connection, size)

        await self._do(work)

    def finish(self, response_id: str, status: str, body: bytes, output: Sequence[Item], events: bytes) -> Future[None]:
        """The last word of a response, which may have been deleted. It need not be waited for."""

        def work(connection: sqlite3.Connection) -> None:
            packed = zlib.compress(events, 1) if events else None
            row = connection.execute("SELECT size, length(input) FROM responses WHERE id=?", (response_id,)).fetchone()
            if row is None:
                return
            size = len(body) + len(packed or b"") + row[1]
            connection.execute(
                "UPDATE responses SET status=?, body=?, events=?, used=?, size=? WHERE id=?",
                (status, body, packed, time.time(), size, response_id),
            )
            self._add_ids(connection, response_id, output)
            self._grow(connection, size - row[0])

        return self._submit(work)

    def _add_ids(self, connection: sqlite3.Connection, parent: str, items: Iterable[Item]) -> None:
        """The items' ids lead to the response; the items themselves are in it."""
        rows = [(parent, item["id"], b"") for item in items]
        connection.executemany("INSERT INTO items (parent, id, data) VALUES (?,?,?)", rows)

    async def response(self, response_id: str, owner: str) -> KeptResponse | None:
        return await self._do(lambda connection: _response(connection, response_id, owner))

    async def delete_response(self, response_id: str, owner: str) -> bool:
        return await self._do(lambda connection: self._delete(connection, "responses", response_id, owner))

    async def chain(self, response_id: str, owner: str, most: int) -> list[KeptResponse] | str:
        """The responses that lead to one, and it, oldest first, at most `most`; or the id of one that is not there."""

        def work(connection: sqlite3.Connection) -> list[KeptResponse] | str:
            found: list[KeptResponse] = []
            wanted: str | None = response_id
            while wanted is not None and len(found) < most:
                kept = _response(connection, wanted, owner)
                if kept is None:
                    return wanted
                found.append(kept)
                wanted = kept.previous
            # All of them are in use: the size limit takes what is not.
            rows = [(time.time(), kept.id) for kept in found]
            connection.executemany("UPDATE responses SET used=? WHERE id=?", rows)
            return found[::-1]

        return await self._do(work)

    async def item(self, item_id: str, owner: str) -> Item | None:
        """An item of any response or conversation of the owner's."""

        def work(connection: sqlite3.Connection) -> Item | None:
            for parent, data in connection.execute(_ITEM, (item_id,)).fetchall():
                if data:
                    if _conversation(connection, parent, owner) is not None:
                        return msgspec.json.decode(data)  # type: ignore[no-any-return]
                elif (kept := _response(connection, parent, owner)) is not None:
                    items = [item for item in (*kept.output, *kept.input_items) if item["id"] == item_id]
                    if items:
                        return items[0]
            return None

        return await self._do(work)

    # ------------------------------------------------------------ conversations
    async def insert_conversation(self, conversation_id: str, owner: str, body: Any) -> None:
        def work(connection: sqlite3.Connection) -> None:
            data = msgspec.json.encode(body)
            row = (conversation_id, owner, time.time(), data, len(data))
            connection.execute("INSERT INTO conversations VALUES (?,?,?,?,?)", row)
            self._grow(connection, len(data))

        await self._do(work)

    async def update_conversation(self, conversation_id: str, body: Any) -> None:
        """Its size, which is small, counts as before."""
        data = msgspec.json.encode(body)
        update = "UPDATE conversations SET body=? WHERE id=?"
        await self._do(lambda connection: connection.execute(update, (data, conversation_id)))

    async def conversation(self, conversation_id: str, owner: str) -> dict[str, Any] | None:
        def work(connection: sqlite3.Connection) -> dict[str, Any] | None:
            body = _conversation(connection, conversation_id, owner)
            if body is not None:
                connection.execute("UPDATE conversations SET used=? WHERE id=?", (time.time(), conversation_id))
            return body

        return await self._do(work)

    async def delete_conversation(self, conversation_id: str, owner: str) -> bool:
        return await self._do(lambda connection: self._delete(connection, "conversations", conversation_id, owner))

    def append(self, conversation_id: str, items: Sequence[Item]) -> Future[None]:
        """To a conversation, which may have been deleted. It need not be waited for."""

        def work(connection: sqlite3.Connection) -> None:
            rows = [(conversation_id, item["id"], msgspec.json.encode(item)) for item in items]
            size = sum(len(data) for _, _, data in rows)
            changed = connection.execute(
                "UPDATE conversations SET used=?, size=size+? WHERE id=?", (time.time(), size, conversation_id)
            )
            if changed.rowcount:
                connection.executemany("INSERT INTO items (parent, id, data) VALUES (?,?,?)", rows)
                self._grow(connection, size)

        return self._submit(work)

    async def items(self, conversation_id: str) -> list[Item]:
        """All items of a conversation, in order."""
        rows = await self._do(
            lambda connection: connection.execute(
                "SELECT data FROM items WHERE parent=? ORDER BY position", (conversation_id,)
            ).fetchall()
        )
        return [msgspec.json.decode(data) for (data,) in rows]

    async def delete_item(self, conversation_id: str, item_id: str) -> bool:
        def work(connection: sqlite3.Connection) -> bool:
            row = (conversation_id, item_id)
            found = connection.execute("SELECT total(length(data)) FROM items WHERE parent=? AND id=?", row)
            size = int(found.fetchone()[0])
            deleted = connection.execute("DELETE FROM items WHERE parent=? AND id=?", row).rowcount
            connection.execute("UPDATE conversations SET size=size-? WHERE id=?", (size, conversation_id))
            self._count(-size)
            return deleted > 0

        return await self._do(work)

    # ------------------------------------------------------------ bounds
    def _count(self, size: int) -> None:
        self._num_bytes = (self._num_bytes or 0) + size

    def _delete(self, connection: sqlite3.Connection, table: str, row_id: str, owner: str | None) -> bool:
        """`owner`: None is anybody."""
        where, values = ("id=?", [row_id]) if owner is None else ("id=? AND owner=?", [row_id, owner])
        found = connection.execute(f"SELECT size FROM {table} WHERE {where}", values).fetchone()
        if found is None:
            return False
        connection.execute(f"DELETE FROM {table} WHERE id=?", (row_id,))
        connection.execute("DELETE FROM items WHERE parent=?", (row_id,))
        self._count(-found[0])
        return True

    def _grow(self, connection: sqlite3.Connection, size: int) -> None:
        """Count what came, and delete what is too old and, while it is too much, what was not used for longest."""
        self._count(size)
        now = time.time()
        if now - self._swept > _SWEEP_SECONDS:
            self._swept = now
            self._delete_unused(connection, f"used < {now - self._max_age!r}", limit=-1)
        while (self._num_bytes or 0) > self._max_bytes and self._delete_unused(connection, "1", limit=1):
            pass

    def _delete_unused(self, connection: sqlite3.Connection, condition: str, limit: int) -> int:
        found = connection.execute(
            f"SELECT 'responses', id, used FROM responses WHERE status NOT IN {UNFINISHED!r} AND {condition} UNION ALL "
            f"SELECT 'conversations', id, used FROM conversations WHERE {condition} ORDER BY used LIMIT {limit}"
        ).fetchall()
        for table, row_id, _ in found:
            self._delete(connection, table, row_id, None)
        return len(found)


def check_store(config: ServerConfig) -> None:
    """Raises `InvalidConfig` when the file of the store cannot be used, before a model is loaded."""

    async def check() -> None:
        store = ResponseStore(config)
        try:
            await store.open()
        finally:
            await store.close()

    if config.responses_store is not None:
        asyncio.run(check())


def _opened(path: str | None) -> sqlite3.Connection:
    import sqlite3  # a server that keeps nothing does without it

    if path is not None:  # what people say is nobody else's to read
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    connection = sqlite3.connect(path or ":memory:", timeout=0.0, check_same_thread=False)
    # No other server: it would take what this one makes for lost.
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    has_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
    connection.commit()
    if version not in (0, _VERSION) or (has_tables and version != _VERSION):
        connection.close()
        raise sqlite3.DatabaseError("this is no store of responses, or one of another version")
    if not has_tables:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
    return connection


def _finish_lost(connection: sqlite3.Connection) -> None:
    """Responses that a server had begun when it ended, are failed ones."""
    rows = connection.execute(f"SELECT id, body FROM responses WHERE status IN {UNFINISHED!r}").fetchall()
    for response_id, data in rows:
        body = msgspec.json.decode(data) | {"status": "failed", "error": LOST}
        connection.execute(
            "UPDATE responses SET status='failed', body=? WHERE id=?", (msgspec.json.encode(body), response_id)
        )
    connection.commit()


def _response(connection: sqlite3.Connection, response_id: str, owner: str) -> KeptResponse | None:
    row = connection.execute(
        "SELECT id, owner, status, previous, body, input, events FROM responses WHERE id=? AND owner=?",
        (response_id, owner),
    ).fetchone()
    if row is None:
        return None
    response_id, owner, status, previous, body, items, events = row
    unpacked = None if events is None else zlib.decompress(events)
    return KeptResponse(response_id, owner, status, previous, body, items, unpacked)


def _conversation(connection: sqlite3.Connection, conversation_id: str, owner: str) -> dict[str, Any] | None:
    row = connection.execute(
        "SELECT body FROM conversations WHERE id=? AND owner=?", (conversation_id, owner)
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0])
