"""A worker in another process: plans, masks and answers cross a socket, and nothing else does.

`python remote_worker.py --fd N --worker NAME` is that process; NAME is a function of this module.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

import octavo
from octavo.base.config import EngineConfig
from octavo.wire.messages import EngineInfo
from octavo.wire.step import ModelRunnerOutput, SchedulerOutput, StepData, TokenMasks
from octavo.wire.transport import BlockingConnection, TransportError, encode_frame


class Collect(StepData):
    """Answer the oldest step that has not been answered."""


class RemoteExecutor:
    """`Executor` over a socket. `submit` waits for nothing: the worker reads one message after the other."""

    def __init__(self, config: EngineConfig, worker: str) -> None:
        self._sock, theirs = socket.socketpair()
        self._sock.settimeout(120)
        paths = [str(Path(octavo.__file__).parents[1]), str(Path(__file__).parents[1])]
        command = [sys.executable, __file__, "--fd", str(theirs.fileno()), "--worker", worker]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        )
        theirs.close()
        self._connection = BlockingConnection(self._sock)
        self._send(config)

    def load(self) -> EngineInfo:
        return self._connection.receive(EngineInfo)

    def submit(self, plan: SchedulerOutput) -> None:
        self._send(plan)

    def submit_masks(self, step: None, masks: TokenMasks) -> None:
        self._send(masks)

    def collect(self, step: None) -> ModelRunnerOutput:
        self._send(Collect())
        return self._connection.receive(ModelRunnerOutput)

    def close(self) -> None:
        self._connection.close()
        assert self._process.wait(60) == 0

    def _send(self, message: Any) -> None:
        self._sock.sendall(encode_frame(message))  # at once: masks are overwritten by those of the next step


def fake(config: EngineConfig) -> Any:
    from core.fake import FakeExecutor, info

    return FakeExecutor(info(plans_ahead=True))


def real(config: EngineConfig) -> Any:
    """On the CPU, but as where the device computes beside the host: what is sampled stays there for the next step."""
    from octavo.device.cpu import CPUDevice
    from octavo.worker.worker import Worker

    CPUDevice.plans_ahead = True
    return Worker(config, lambda name, detail: None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--worker", required=True)
    args = parser.parse_args()
    sock = socket.socket(fileno=args.fd)
    connection = BlockingConnection(sock)
    worker = globals()[args.worker](connection.receive(EngineConfig))
    sock.sendall(encode_frame(worker.load()))
    steps: deque[Any] = deque()
    while True:
        try:
            message = connection.receive(SchedulerOutput | TokenMasks | Collect)
        except TransportError:  # the other side has what it wanted
            return
        if isinstance(message, SchedulerOutput):
            steps.append(worker.submit(message))
        elif isinstance(message, TokenMasks):
            worker.submit_masks(steps[-1], message)
        else:
            sock.sendall(encode_frame(worker.collect(steps.popleft())))


if __name__ == "__main__":
    main()
