"""Responses while they are made: each ends in a state that is kept, whoever goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.base.errors import OctavoError, ShuttingDown
from octavo.client.siblings import NoSiblings, Siblings
from octavo.served.model import Prepared, ServedModel
from octavo.server.responses.output import ResponseBuilder
from octavo.server.responses.protocol.items import Item
from octavo.server.responses.store import ANSWERED, UNFINISHED, KeptResponse, ResponseStore, StoreFailed

if TYPE_CHECKING:
    from octavo.server.responses.rounds import Rounds

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Making:
    """One response: what it is made of, and where it is kept."""

    model: ServedModel
    prepared: Prepared
    builder: ResponseBuilder
    store: ResponseStore
    owner: str
    input_items: Sequence[Item]
    interval: int  # tokens in one piece
    rounds: Rounds | None = None  # where the model may call tools of MCP servers
    log: list[bytes] | None = None  # all events, where they are kept
    is_server_leaving: bool = False
    failure: Exception | None = None  # what the response failed of
    _is_begun: bool = False

    def _take(self) -> list[bytes]:
        events = self.builder.take()
        if self.log is not None:
            self.log += events
        return events

    @property
    def has_called(self) -> bool:
        return self.rounds is not None and self.rounds.has_called

    async def begin(self) -> None:
        """The response exists from here on. Raises `StoreFailed`."""
        response = self.builder.response
        if response.store:
            body, items = msgspec.json.encode(response), msgspec.json.encode(self.input_items)
            previous = response.previous_response_id
            kept = KeptResponse(response.id, self.owner, response.status, previous, body, items)
            await self.store.insert(kept, self.input_items)
        self.builder.begin()

    async def _start(self) -> None:
        """It is being made. Raises `StoreFailed`."""
        if not self._is_begun:
            self._is_begun = True  # also for whoever cancels within
            await self.begin()
        self.builder.start()

    async def pieces(self) -> AsyncGenerator[list[bytes], None]:
        """The events as they come, those of the end last; empty lists where nobody wants events.

        Raises what refuses the generation, unless the response has begun before; afterwards it is a response that
        failed. Closed or cancelled before its end it is a cancelled one.
        """
        builder, rounds = self.builder, self.rounds
        self._is_begun = builder.response.status == "queued"
        prepared: Prepared | None = self.prepared
        try:
            if rounds is not None:
                await self._start()
                async with aclosing(rounds.opened(builder)) as steps:
                    async for _ in steps:
                        yield self._take()
                prepared = rounds.next
            while prepared is not None:
                async with aclosing(self.model.generate(prepared, self.interval)) as stream:
                    async for news in stream:
                        if builder.response.status == "queued" or not self._is_begun:
                            await self._start()
                        builder.add(news)
                        yield self._take()
                prepared = None
                if rounds is not None:
                    async with aclosing(rounds.made(builder)) as steps:
                        async for _ in steps:
                            yield self._take()
                    prepared = rounds.next
            builder.end()
        except (asyncio.CancelledError, GeneratorExit):
            if self._is_begun:
                self.abandon()
            raise
        except Exception as exc:
            if not self._is_begun or isinstance(exc, StoreFailed):
                raise
            if not isinstance(exc, OctavoError):
                logger.exception("response %s failed", builder.response.id)
            self.failure = exc
            builder.fail(exc)
        finally:
            if rounds is not None:
                rounds.close()
        last = self._take()
        with contextlib.suppress(StoreFailed):  # the log has it; whoever waits gets the response all the same
            for done in self._keep():
                await asyncio.shield(asyncio.wrap_future(done))
        yield last

    def abandon(self) -> None:
        """End the response here, unless it is at its end."""
        if self.builder.response.status not in UNFINISHED:
            return
        if self.is_server_leaving:
            self.builder.fail(ShuttingDown("The server was shut down."))
        else:
            self.builder.cancel()
        self._take()
        with contextlib.suppress(StoreFailed):
            self._keep()

    def _keep(self) -> list[Future[None]]:
        """Keep the response, which is at its end."""
        response = self.builder.response
        output: list[Item] = msgspec.to_builtins(response.output)
        asked = []
        if response.store:
            body, events = msgspec.json.encode(response), b"".join(self.log or ())
            asked.append(self.store.finish(response.id, response.status, body, output, events))
        if response.conversation is not None and response.status in ANSWERED:
            asked.append(self.store.append(response.conversation.id, [*self.input_items, *output]))
        return asked


class Run:
    """A response that is made in the background, and whoever reads its events."""

    def __init__(self, making: Making) -> None:
        self.making = making
        self.task: asyncio.Task[None] | None = None
        self._is_done = False
        self._changed = asyncio.Event()

    async def run(self) -> None:
        try:
            async with aclosing(self.making.pieces()) as pieces:
                async for _ in pieces:
                    self._wake()
        finally:
            self._finish()

    def _finish(self) -> None:
        self._is_done = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, start: int) -> AsyncGenerator[list[bytes], None]:
        """The events from the `start`-th on, as they come."""
        log = self.making.log
        assert log is not None
        while True:
            changed = self._changed
            if start < len(log):
                events = log[start:]
                start = len(log)
                yield events
            elif self._is_done:
                return
            else:
                await changed.wait()

    async def body(self) -> bytes | None:
        """The response as it is, as JSON."""
        return msgspec.json.encode(self.making.builder.response)

    async def cancel(self) -> bytes | None:
        """Returns when the response is at its end; the value is it, as JSON."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait({self.task})
        self.making.abandon()  # the task may have been cancelled before its first step
        self._finish()
        return await self.body()


class RunElsewhere:
    """One that another process makes. What it is asked is None when it has come to its end: then the store has it."""

    def __init__(self, siblings: Siblings, response_id: str, owner: str) -> None:
        self._siblings = siblings
        self._name = (response_id, owner)

    async def body(self) -> bytes | None:
        found: bytes | None = await self._ask("run_body")
        return found

    async def cancel(self) -> bytes | None:
        found: bytes | None = await self._ask("run_cancel")
        return found

    async def events(self, start: int) -> list[bytes] | None:
        """At least one from the `start`-th on, when there is one."""
        found: list[bytes] | None = await self._ask("run_events", start)
        return found

    async def _ask(self, what: str, *args: int) -> Any:
        answers = await self._siblings.everywhere(what, *self._name, *args)
        return next((answer for answer in answers if answer is not None), None)


class BackgroundRuns:
    """Those of this process, and a way to those of others."""

    def __init__(self, siblings: Siblings | None = None) -> None:
        self._runs: dict[str, Run] = {}
        self._siblings = siblings or NoSiblings()
        self._siblings.offer("run_body", self._body)
        self._siblings.offer("run_cancel", self._cancel)
        self._siblings.offer("run_events", self._events)

    async def find(self, response_id: str, owner: str) -> Run | RunElsewhere | None:
        run = self.get(response_id, owner)
        if run is not None or self._siblings.count == 1:
            return run
        elsewhere = RunElsewhere(self._siblings, response_id, owner)
        return None if await elsewhere.body() is None else elsewhere

    def get(self, response_id: str, owner: str) -> Run | None:
        run = self._runs.get(response_id)
        return run if run is not None and run.making.owner == owner else None

    async def start(self, making: Making) -> Run:
        """Raises `StoreFailed`."""
        making.log = []
        try:
            await making.begin()
        except asyncio.CancelledError:  # the client is gone, and does not know its name
            making.abandon()
            raise
        making.log += making.builder.take()
        response_id = making.builder.response.id
        run = self._runs[response_id] = Run(making)
        run.task = asyncio.create_task(run.run())
        run.task.add_done_callback(lambda task: self._runs.pop(response_id))
        return run

    async def _body(self, response_id: str, owner: str) -> bytes | None:
        run = self.get(response_id, owner)
        return None if run is None else await run.body()

    async def _cancel(self, response_id: str, owner: str) -> bytes | None:
        run = self.get(response_id, owner)
        return None if run is None else await run.cancel()

    async def _events(self, response_id: str, owner: str, start: int) -> list[bytes] | None:
        run = self.get(response_id, owner)
        if run is not None:
            async with aclosing(run.follow(start)) as pieces:
                async for events in pieces:
                    return events
        return None

    async def close(self) -> None:
        for run in list(self._runs.values()):
            run.making.is_server_leaving = True
            await run.cancel()
