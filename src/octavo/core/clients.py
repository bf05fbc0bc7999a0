"""Several API processes on one engine: their connections, as the loop sees one.

A request's id tells whose it is: client i of n counts i + n, i + 2n, ... Calls are numbered likewise. So outputs need
no translation, and no client can be told of another's requests.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from octavo.wire.messages import CallResult, EngineCoreOutput, EngineCoreOutputs, Heartbeat, Phase, ToEngine
from octavo.wire.transport import BlockingConnection


@dataclass(frozen=True, slots=True)
class ClientGone:
    """For the inbox: the connection to one client has ended, and its requests with it."""

    index: int
    num_clients: int

    def owned(self, request_ids: Iterable[int]) -> list[int]:
        return [request_id for request_id in request_ids if request_id % self.num_clients == self.index]


class ClientConnections:
    """Implements `EngineConnection`. The parent hears how the engine starts, and ends it."""

    def __init__(self, parent: BlockingConnection, sockets: Sequence[socket.socket]) -> None:
        """All fill the inbox of `parent`."""
        self.inbox = parent.inbox
        self._parent = parent
        self._clients = [BlockingConnection(sock, parent.inbox) for sock in sockets]

    def start(self) -> None:
        for index, client in enumerate(self._clients):
            client.start(ToEngine, end=ClientGone(index, len(self._clients)))

    def send(self, message: Any, *, droppable: bool = False) -> None:
        if isinstance(message, EngineCoreOutputs):
            self._send_outputs(message)
        elif isinstance(message, CallResult):
            self._clients[message.call_id % len(self._clients)].send(message)
        else:
            # The parent tells what happens in the start, and of the rest nothing.
            has_parent, has_clients = not isinstance(message, Heartbeat), not isinstance(message, Phase)
            for connection in [self._parent] * has_parent + self._clients * has_clients:
                connection.send(message, droppable=droppable)

    def close(self) -> None:
        for connection in (*self._clients, self._parent):
            connection.close()

    def _send_outputs(self, message: EngineCoreOutputs) -> None:
        """Each client gets its own. The first hears of every step: its metrics are those of the engine."""
        parts: list[list[EngineCoreOutput]] = [[] for _ in self._clients]
        for output in message.outputs:
            parts[output.request_id % len(parts)].append(output)
        for index, (client, part) in enumerate(zip(self._clients, parts, strict=True)):
            if part or index == 0:
                client.send(EngineCoreOutputs(part, message.stats, message.timestamp))
