"""A server of several API processes: their parent, from the start to the exit code.

The parent starts the engine and the processes, hands signals on, brings questions from one process to all, and keeps
the responses of all. It serves nobody itself. The engine dead, a process dead: the server ends, as it does with one
process. The requests of a dead process are lost with its connections; the others finish theirs as after TERM, and the
exit code is 1.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

import uvloop

from octavo.base.config import ServeConfig
from octavo.base.errors import ShuttingDown, StartupError
from octavo.client.siblings import Locks, Offer
from octavo.launch.api_processes import ApiProcess, api_processes, wait_ready
from octavo.launch.engine_process import EngineProcess, exit_words
from octavo.launch.listener import Listener, bind
from octavo.launch.offers import answered, reply
from octavo.launch.place import tell_address
from octavo.launch.progress import phase_report
from octavo.launch.serve_loop import END_SECONDS, ENGINE_STOP_SECONDS
from octavo.launch.server import found_model, report, served_names, unless_stopped
from octavo.launch.service_manager import tell_stopping
from octavo.launch.startup import in_background
from octavo.server.responses.shared_store import store_offers
from octavo.server.responses.store import ResponseStore
from octavo.wire.api_messages import (
    Answer,
    Ask,
    Failure,
    FromApiProcess,
    Leaving,
    Listening,
    Ran,
    Run,
    Serve,
    Signalled,
)
from octavo.wire.messages import Shutdown, StartupFailed
from octavo.wire.transport import AsyncConnection, TransportError

logger = logging.getLogger(__name__)

#: Connections that may wait to be accepted.
_BACKLOG: Final = 2048
#: Seconds that the processes get behind a second signal.
_HURRIED_SECONDS: Final = 5.0
#: Seconds in which an engine that failed is gone, when processes have seen the end of its connections.
_ENGINE_END_SECONDS: Final = 0.5
#: Seconds between two looks at a process, and without an answer of one that hangs. They are counted in looks: what held
#: up the parent too is not held against it.
TICK_SECONDS: Final = 1.0
HANG_TICKS = 30


def serve_by_several(config: ServeConfig, started: float) -> int:
    """`server.serve` of a checked configuration that asks for more than one API process."""

    def run() -> int:
        with bind(config.server) as listener:
            resolved, defaults = found_model(config)
            engine = EngineProcess.spawn(resolved, num_clients=config.server.api_server_count)
            try:
                with api_processes(config, resolved, defaults, listener, engine) as processes:
                    _wait_all(engine, processes)
                    report(served_names(config)[0], engine.info, started)
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        return runner.run(Supervisor(config, listener, engine, processes).run())
            finally:
                engine.kill()

    return unless_stopped(run)


def _wait_all(engine: EngineProcess, processes: list[ApiProcess]) -> None:
    """Raises `StartupError`: of whoever failed first."""
    killed = threading.Event()

    def stop_engine(future: Future[None]) -> None:
        # Without the processes the weights are of no use: stop reading them. The processes may have failed because the
        # engine did, and it knows better why.
        if future.exception() is not None and not engine.ends_within(_ENGINE_END_SECONDS):
            killed.set()
            engine.kill()

    ready = in_background(lambda: wait_ready(processes))
    ready.add_done_callback(stop_engine)
    try:
        with phase_report() as on_phase:
            engine.wait_ready(on_phase)
    except StartupError:
        if killed.is_set():
            ready.result()  # the true cause
        raise
    ready.result()


class _Member:
    """A process, and what it was asked."""

    def __init__(self, process: ApiProcess, connection: AsyncConnection[FromApiProcess]) -> None:
        self.process, self.connection = process, connection
        self.is_alive = True
        self.asked: dict[int, asyncio.Future[Any]] = {}

    def send(self, message: Any) -> None:
        with suppress(TransportError):  # its end is about to be noticed
            self.connection.send(message)

    def ask(self, number: int, name: str, args: tuple[Any, ...]) -> asyncio.Future[Ran]:
        future: asyncio.Future[Ran] = asyncio.get_running_loop().create_future()
        self.asked[number] = future
        self.send(Run(number, name, args))
        return future

    def end(self) -> None:
        self.is_alive = False
        for future in self.asked.values():
            if not future.done():
                future.set_exception(ShuttingDown("An API process of the server has ended."))


class Supervisor:
    """Owns the processes while they serve. The engine is stopped at the end of `run`."""

    def __init__(
        self, config: ServeConfig, listener: Listener, engine: EngineProcess, processes: list[ApiProcess]
    ) -> None:
        self._config, self._listener, self._engine, self._processes = config, listener, engine, processes
        self._members: list[_Member] = []
        self._store = ResponseStore(config.server)
        locks = Locks()
        self._offers: dict[str, Offer] = {
            "lock": locks.acquire,
            "unlock": locks.release,
            **store_offers(self._store),
        }
        self._numbers = itertools.count()
        self._num_listening = 0
        self._num_signals = 0
        self._is_ending = False
        self._exit_code = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """The exit code. Raises `InvalidConfig` for a store of responses that cannot be used."""
        if self._config.server.responses_store is not None:
            await self._store.open()
        engine = await self._engine.connect()
        self._spawn(self._watch_engine(engine))
        for process in self._processes:
            connection = await AsyncConnection[FromApiProcess].open(process.control, FromApiProcess)
            self._members.append(_Member(process, connection))
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)
        self._listener.make_reusable()
        for sock in self._listener.sockets:
            sock.listen(_BACKLOG)
        self._send_all(Serve())
        try:
            await asyncio.gather(*map(self._attend, self._members))
        finally:
            await self._store.close()
            seconds = 0.0 if self._num_signals > 1 else ENGINE_STOP_SECONDS
            self._is_ending = True
            with suppress(TransportError):
                engine.send(Shutdown())
            await self._engine.stop(seconds)
        return self._exit_code

    # ------------------------------------------------------------ one process
    async def _attend(self, member: _Member) -> None:
        """Until its end."""
        self._spawn(self._watch(member))
        try:
            async for message in member.connection:
                self._on_message(member, message)
        except TransportError as exc:
            logger.error("API process %d: %s", member.process.index, exc.message)
        member.end()
        code = await member.process.exit_code()
        self._exit_code = self._exit_code or int(code != 0)
        if not self._is_ending:
            logger.error("API process %d ended: %s; the server ends", member.process.index, exit_words(code))
            self._exit_code = self._exit_code or 1
            self._begin_end("an API process ended", signal.SIGTERM)

    async def _watch(self, member: _Member) -> None:
        """Kill a process that hangs: its requests do not end, and in the end the engine waits for it."""
        while member.is_alive:
            answer = member.ask(next(self._numbers), "live", ())
            for _ in range(HANG_TICKS):
                await asyncio.wait({answer}, timeout=TICK_SECONDS)
                if answer.done():
                    break
            else:
                logger.error("API process %d has not answered for %d s and is killed", member.process.index, HANG_TICKS)
                member.process.kill()
                return
            answer.exception()  # it has ended: that is told elsewhere
            await asyncio.sleep(TICK_SECONDS)

    def _on_message(self, member: _Member, message: Any) -> None:
        if isinstance(message, Ask):
            self._spawn(self._answer(member, message))
        elif isinstance(message, Ran):
            future = member.asked.pop(message.number)
            if not future.done():
                future.set_result(message)
        elif isinstance(message, Listening):
            self._num_listening += 1
            if self._num_listening == len(self._members):
                self._on_listening()
        elif isinstance(message, StartupFailed):  # it was ready, and then could not listen
            logger.error("API process %d: %s", member.process.index, message.message)
        elif isinstance(message, Leaving) and not self._is_ending:
            tell_stopping(message.status, message.seconds)

    def _on_listening(self) -> None:
        """The sockets are the processes' from here on: the port closes with the last of them."""
        for sock in self._listener.sockets:
            sock.close()
        tell_address(served_names(self._config)[0], self._listener)

    # ------------------------------------------------------------ questions
    async def _answer(self, member: _Member, ask: Ask) -> None:
        if ask.everywhere:
            result, failure = await self._everywhere(ask)
        else:
            result, failure = await answered(self._offers, ask.name, ask.args)
        with suppress(TransportError):  # its end is about to be noticed
            reply(member.connection, Answer, ask.number, result, failure)

    async def _everywhere(self, ask: Ask) -> tuple[Any, Failure | None]:
        """What all have answered, in their order; the first error, if one had any."""
        alive = [member for member in self._members if member.is_alive]
        waiting = [member.ask(next(self._numbers), ask.name, ask.args) for member in alive]
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        results = []
        for answer in answers:
            if isinstance(answer, BaseException):
                return None, Failure(type(answer).__name__, str(answer))
            if answer.failure is not None:
                return None, answer.failure
            results.append(answer.result)
        return results, None

    # ------------------------------------------------------------ ends
    def _on_signal(self, signum: int) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            timeout = self._config.server.shutdown_timeout
            self._begin_end(f"draining for at most {timeout:g} s", signum)
        elif self._num_signals == 2:
            self._exit_code = 128 + signum
            self._send_all(Signalled(signum))
            asyncio.get_running_loop().call_later(_HURRIED_SECONDS, self._kill_all)

    def _begin_end(self, status: str, signum: int) -> None:
        """The processes finish what they have, and end."""
        if self._is_ending:
            self._send_all(Signalled(signum))  # a signal to a server that ends for another reason is a second one
            return
        self._is_ending = True
        seconds = self._config.server.shutdown_timeout + END_SECONDS
        tell_stopping(status, seconds)
        self._send_all(Signalled(signum))
        asyncio.get_running_loop().call_later(seconds, self._kill_all)

    def _kill_all(self) -> None:
        for member in self._members:
            if member.is_alive:
                logger.error("API process %d did not end and is killed", member.process.index)
                member.process.kill()

    async def _watch_engine(self, connection: AsyncConnection[Any]) -> None:
        """The processes notice its death themselves; here is who knows of what it died."""
        with suppress(TransportError):
            while await connection.receive() is not None:
                pass
        if not self._is_ending:
            for _ in range(100):
                if (reason := self._engine.exit_reason()) is not None:
                    logger.error("The engine process is dead: %s.", reason)
                    return
                await asyncio.sleep(0.01)

    def _send_all(self, message: Any) -> None:
        for member in self._members:
            if member.is_alive:
                member.send(message)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
