"""In a helper that handles what strangers sent: bounds that the kernel holds it to."""

from __future__ import annotations

import resource
import signal
from collections.abc import Callable
from typing import Any


def confine(max_address_space: int) -> None:
    """From here on this process has so many bytes of memory, starts nothing and writes no file."""
    # A terminal sends INT to the whole group; a helper ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (max_address_space, max_address_space))
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
        resource.setrlimit(kind, (0, 0))


def in_time(handle: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """`handle`, whose requests say in how many `seconds` they are to be answered. If nobody is left to kill the helper
    then, the kernel does, in the middle of any call."""

    def handle_in_time(request: dict[str, Any]) -> dict[str, Any]:
        signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 1)
        reply = handle(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        return reply

    return handle_in_time
