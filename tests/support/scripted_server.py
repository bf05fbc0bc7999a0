"""The server over real HTTP with an engine that says what a test has it say, for tests in a browser."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn

from octavo.base.params import GenerateRequest, SamplingParams
from octavo.client.generation import CompletionDelta, GenerationDelta
from octavo.client.observer import FinishedSample, RequestTimes
from octavo.wire.messages import SchedulerStats
from support.server_fakes import Server, Step, engine_info, make_server
from support.server_process import bound

#: A script waits for it, and a test opens it: `ScriptedServer.open`.
Gate = asyncio.Event


def said(*pieces: str | Gate | Exception) -> Iterator[Step]:
    """The deltas of a reply: one a piece, with as many tokens as it has bytes; a gate holds up what follows it."""
    count = 0
    for i, piece in enumerate(pieces):
        if isinstance(piece, str):
            data = list(piece.encode())
            count += len(data)
            is_last = i == len(pieces) - 1
            output = CompletionDelta(0, piece, data, None, "stop" if is_last else None, None)
            yield GenerationDelta([output], 5, 0, count, is_last)
        else:
            yield piece


class ScriptedServer:
    """`replies`: what each request gets, in order, as pieces for `said`; the last one goes on for ever."""

    def __init__(self, *replies: Sequence[str | Gate | Exception], port: int = 0, **config: Any) -> None:
        self.replies = list(replies) or [["Hello ", "there."]]
        self.server: Server = make_server(self._script, info=engine_info(max_model_len=1 << 16), **config)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", port))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}{config.get('root_path', '')}/"
        self._uvicorn = uvicorn.Server(uvicorn.Config(self.server.app, log_level="error", timeout_graceful_shutdown=1))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._uvicorn.serve([self._socket]))

    def _script(self, request: GenerateRequest) -> Sequence[Step]:
        pieces = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return list(said(*pieces))

    def open(self, gate: Gate) -> None:
        self._loop.call_soon_threadsafe(gate.set)

    @property
    def sent(self) -> list[Any]:
        """The messages of the last request, as the template gets them."""
        return [dict(message) for message in self.server.renderer.messages]

    def stats(self, **changes: int) -> None:
        """The engine's numbers after a step; what is not given is 0."""
        values = dict.fromkeys(SchedulerStats.__struct_fields__, 0)
        self.server.state.metrics.on_stats(SchedulerStats(**values | changes))

    def finish(self, *, num_output_tokens: int, seconds: float, first_token: float) -> None:
        """The metrics of a request that ended."""
        request = GenerateRequest(external_id="a", prompt_token_ids=[0], params=SamplingParams())
        times = (0.1, 0.1 + first_token, 0.1 + seconds)  # 0 would mean never
        sample = FinishedSample(
            request, "stop", num_output_tokens, 0, RequestTimes(times[0], times[0], times[1], times[2], times[2])
        )
        self.server.state.metrics.on_finish(sample)

    def close(self) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(bound(10))
        self._socket.close()

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
